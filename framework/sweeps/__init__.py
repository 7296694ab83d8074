"""Sweeps: Hydra multirun of `framework.train`, each job in processes and a run folder of its own."""
