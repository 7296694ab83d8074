"""Reads encoders that other libraries wrote, and translates their tensors and settings into those of `models`."""
