"""Machine translation: a decoder on top of the encoder, and beam search for targets."""
