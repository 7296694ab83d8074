"""Search for the nearest vectors, for evaluation and for hard negatives."""
