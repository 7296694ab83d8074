"""Token-level augmentation of the training split: each epoch can see a different version of a text."""
