"""The layouts of published models: files, names, configs; a file for each family. Loading is in `models.pretrained`."""
