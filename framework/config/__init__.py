"""Validated settings from Hydra configs, and the objects of a run that are built from them."""
