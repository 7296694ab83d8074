"""Error analysis of a run: the stored analysis of each split, its plots, and report.html."""
