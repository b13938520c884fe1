"""Settings that all tests share."""

from __future__ import annotations

import os

import hypothesis

# Several processes of tests share the cores, and so do the processes that these start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Reproducible, and never timed: a busy machine must not fail a test.
hypothesis.settings.register_profile(
    "foveal",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=40,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("foveal")
