"""Foveal: sharp, fast vision on large images."""
