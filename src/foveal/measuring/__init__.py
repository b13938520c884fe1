"""Measure models: latency, memory, parameters, multiply-accumulates."""
