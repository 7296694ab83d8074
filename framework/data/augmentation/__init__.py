"""Token-level augmentation of the training split: a text that comes again is not quite the same."""
