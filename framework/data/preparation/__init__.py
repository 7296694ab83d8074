"""Builds a token store from sources: cleaning, a vocabulary, token ids, and a data card with the counts."""
