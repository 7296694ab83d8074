"""Writes metrics and files to Weights & Biases."""
