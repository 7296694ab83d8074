"""The LightningModule, its Trainer, evaluation and inference; the passes of a step and explanations have folders."""
