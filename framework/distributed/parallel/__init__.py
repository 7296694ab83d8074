"""How a single-device model is spread over ranks: one order, each measure a file."""
