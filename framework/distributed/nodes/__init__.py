"""Inspection of the nodes of a run, and of the links between them, before a training."""
