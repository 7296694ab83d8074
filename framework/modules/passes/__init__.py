"""Forward and backward passes of a training step, one file for each kind of loss and regularization."""
