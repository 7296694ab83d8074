"""The token store: written so that a killed writer goes on, read by token place, divided into sequences."""
