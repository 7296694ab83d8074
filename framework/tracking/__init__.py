"""Where metrics go: files, Weights & Biases, plots."""
