"""Values that several floors must agree on."""

IGNORE_INDEX = -100
"""Target value that no loss counts (the convention of torch.nn.functional.cross_entropy)."""

DUMMY_SEQUENCE_ID = -1
"""Sequence id of the filler sequences that complete a batch of fixed capacity."""
