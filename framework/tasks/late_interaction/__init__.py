"""Late interaction: one vector per token, and a score that sums over the best matches of the tokens of a query."""
