"""Differential privacy without a model: the accountant, the secret of a run, and its noise and samples."""
