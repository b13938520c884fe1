"""Doing things with models: predicting, evaluating, training."""
