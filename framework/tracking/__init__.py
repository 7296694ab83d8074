"""Writes metrics to files, the console, plots, reports and Weights & Biases."""
