"""Export models to files that run without torch."""
