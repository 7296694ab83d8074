"""Finds personal data in texts by format and checksum, and masks it."""
