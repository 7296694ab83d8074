"""Metrics: classes of torchmetrics for scores over ranks, NumPy functions for rankings and texts."""
