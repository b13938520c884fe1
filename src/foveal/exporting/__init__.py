"""Leaving the laboratory: exported files, and honest measurements."""
