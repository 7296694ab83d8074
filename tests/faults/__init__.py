"""Runs that are killed, stopped, starved and moved, and what survives: the pieces of the matrix of faults."""
