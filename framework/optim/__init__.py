"""Parameter groups, schedules (step -> factor) and the optimizers that torch does not have."""
