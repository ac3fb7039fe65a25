"""koubou-ctl: one file per command group; a command's module is imported only when it runs."""
