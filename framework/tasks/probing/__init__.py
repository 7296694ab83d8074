"""Linear probes: scores of linear models on frozen features, measured while another task is trained."""
