"""Text to ids: tokenizers, their training, and fast encoding of many sentences."""
