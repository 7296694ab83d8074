"""Parallelization of a single-device model: one technique per file, applied in one fixed order."""
