"""Sweeps: Hydra multirun of `framework.train`. Each job has its own processes and run folder."""
