"""Run checkpoints: layout, save, load and export."""
