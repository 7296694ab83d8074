"""Building blocks of an encoder: single-device modules and functions that know no rank, mesh, config file or logger."""
