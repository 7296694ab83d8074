"""The encoder, its config, and the way to and from published checkpoints."""
