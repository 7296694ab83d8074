"""The error analysis of a run: what is kept of a split, its pictures, and report.html."""
