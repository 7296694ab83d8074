"""What encoders are trained for: one folder a task."""
