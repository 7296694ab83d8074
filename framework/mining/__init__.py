"""Hard negatives: documents that a trained model takes for an answer although they are none."""
