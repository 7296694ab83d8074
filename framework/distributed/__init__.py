"""Processes, meshes, and how a single-device model is spread over them."""
