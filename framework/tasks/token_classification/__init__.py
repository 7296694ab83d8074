"""A tag for each word or character of a text, and the entities that tags spell."""
