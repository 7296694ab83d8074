"""Processes of a run: their ranks and process group, checks between ranks, and reports of failures and hangs."""
