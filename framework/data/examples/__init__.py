"""What fine-tuning reads: files of labelled examples, checked, freed of repeats and split."""
