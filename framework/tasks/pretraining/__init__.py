"""Pre-training: masked language modelling and next-sentence prediction."""
