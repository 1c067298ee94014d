"""The loop: how a run begins, steps, stops and meets trouble; whole runs in a row."""
