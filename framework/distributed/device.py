"""Tells on which kind of device this process computes."""

import torch


def device_type() -> str:
    """Returns "cuda" where a GPU can be used, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"
