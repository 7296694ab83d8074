"""What a step is made of: order, packing, budgets, and who reads what."""
