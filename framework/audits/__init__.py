"""Audits of trained models: behaviour under tests and edits, and differences between groups of people."""
