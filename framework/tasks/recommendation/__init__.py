"""Text-based recommendation: ranks the items of a catalogue for a user, by the texts of items the user liked before."""
