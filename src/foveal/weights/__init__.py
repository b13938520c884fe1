"""Find, fetch, read and load weights."""
