"""How a step goes over its micro-batches: one file a form of loss."""
