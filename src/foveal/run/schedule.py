"""Optimiser and learning rate."""

from __future__ import annotations

import math
from typing import Any

from torch import nn


def learning_rate(step: int, steps: int, warmup: float) -> float:
    """Share of the peak rate: linear rise over the first ``warmup`` of the steps, then a half cosine to 0."""
    rise = max(1, round(steps * warmup))
    if step < rise:
        return (step + 1) / rise
    return 0.5 + 0.5 * math.cos(math.pi * (step - rise) / max(1, steps - rise))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights decay; norms and biases do not."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
