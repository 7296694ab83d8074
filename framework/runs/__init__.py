"""A run: its parts, its folder and records, the starts that train it, and the trained model that it leaves."""
