"""The LightningDataModule and its dataset of global steps."""
