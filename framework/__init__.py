"""Cloze: a distributed trainer for transformer encoders."""
