"""The LightningModule, its Trainer, evaluation and inference."""
