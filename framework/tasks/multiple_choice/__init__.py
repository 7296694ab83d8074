"""Multiple choice: selection of one of several answers to a question."""
