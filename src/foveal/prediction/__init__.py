"""Predict: from a reference to a predictor, from an image to a result."""
