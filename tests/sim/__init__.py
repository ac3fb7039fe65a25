"""The deterministic simulation: the two real cores, a virtual clock, a network and disks that misbehave by a seed."""
