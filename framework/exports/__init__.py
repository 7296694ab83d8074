"""Writes folders that other libraries load."""
