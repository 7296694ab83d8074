"""Turns text into packed batches; every random draw is a function of (seed, epoch, index)."""
