"""Data sets: reading them, checking them, augmenting them."""
