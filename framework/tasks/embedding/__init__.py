"""Sentence embeddings: one vector per text, close to the vectors of matching texts."""
