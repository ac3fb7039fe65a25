"""Tests of the whole workshop: real processes, real sockets, simulated Ollamas."""
