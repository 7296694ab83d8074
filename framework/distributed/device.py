"""Selects the kind of device for this process."""

import torch


def device_type() -> str:
    """Returns "cuda" if a GPU is available, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"
