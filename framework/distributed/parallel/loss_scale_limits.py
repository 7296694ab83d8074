"""Defaults and bounds of the loss scale of fp16. Imports no torch, so that settings of commands start quickly."""

INITIAL_SCALE = 2.0**16
GROWTH_INTERVAL = 2000
SMALLEST_SCALE = 1.0
LARGEST_SCALE = 2.0**127
"""Largest power of two in fp32."""
