"""Parameter groups, schedules (step -> factor), and optimizers that torch lacks."""
