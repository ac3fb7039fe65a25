"""Measurements of the whole system on this machine, as ratios within one run: `python -m bench`."""
