"""Predict: from a reference to a predictor, and from an image to a result."""
