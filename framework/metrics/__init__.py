"""Metrics, as thin classes over torchmetrics."""
