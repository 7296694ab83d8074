"""From Hydra configs to checked, built objects."""
