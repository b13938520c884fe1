"""Read, prepare, resample, write and draw images."""
