"""Token classification: a tag for each word or character of a text, and the entities that the tags encode."""
