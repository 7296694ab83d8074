"""Recommendation from texts: what a user may like next, by the texts of what the user liked before."""
