"""Settings that all tests share."""

from __future__ import annotations

import hypothesis

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
