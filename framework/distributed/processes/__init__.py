"""Who the processes of a run are, what they agree on, and what they say when one fails, hangs or leaves."""
