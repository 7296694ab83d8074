"""What the nodes of a run are and what lies between them, looked at before they work together."""
