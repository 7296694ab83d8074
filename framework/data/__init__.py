"""From text to packed batches; every draw is a function of (seed, epoch, index)."""
