"""Real processes under kills, stops and a bad network, and the proof that nothing accepted was lost."""
