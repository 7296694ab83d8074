"""Sentence embeddings: one vector for a text, near to those of texts that belong to it."""
