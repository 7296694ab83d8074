"""One of several answers to a question."""
