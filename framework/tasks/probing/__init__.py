"""Linear probes: what can be read off frozen features, measured while another task is trained."""
