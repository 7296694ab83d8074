"""Tokenization: tokenizers, their training, and fast encoding of many sentences."""
