"""Runs a training step on fake tensors and fake ranks, and computes memory, traffic and time of a run from it."""
