"""Which task is next and which worker gets it: what the core asks when it gives work out. Pure."""
