"""Building blocks of an encoder: single-device modules and functions, independent of ranks, configs and loggers."""
