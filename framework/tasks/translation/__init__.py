"""A text of one language for a text of another: a decoder on top of the encoder, and a search for the best target."""
