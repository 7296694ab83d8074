"""Planning of steps: order, packing, token budgets, and the sequences that each rank reads."""
