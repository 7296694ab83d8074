"""Reads files of labelled examples, checks them, removes duplicates and splits them into train, validation and test."""
