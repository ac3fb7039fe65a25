"""The demo: a whole workshop of real processes on this machine, with simulated (or your own) Ollamas."""
