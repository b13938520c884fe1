"""Score models on labelled data sets."""
