"""Converts the tensors and settings of encoders between published formats and `framework.models`."""
