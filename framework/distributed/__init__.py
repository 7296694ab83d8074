"""Processes of a run, device meshes, and the parallelization of single-device models over them."""
