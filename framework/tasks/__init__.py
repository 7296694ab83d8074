"""Training objectives and downstream tasks, one folder each."""
