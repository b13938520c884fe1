"""Read, check and augment data sets."""
