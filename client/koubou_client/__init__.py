"""The Python client and koubou-ctl."""
