"""Read, prepare, resample, draw and write images."""
