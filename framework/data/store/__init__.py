"""Token store: a resumable writer, reading by token offset, and the division into sequences."""
