"""From sources to a store: cleaning, a vocabulary, ids, and the card that tells what came of it."""
