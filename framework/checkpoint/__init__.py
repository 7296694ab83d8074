"""Writes, checks and reads the checkpoints of a run."""
