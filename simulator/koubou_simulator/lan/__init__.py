"""A LAN in a box: the broker's real core in virtual time, with simulated boxes; reproducible by seed."""
