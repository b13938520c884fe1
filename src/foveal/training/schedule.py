"""Optimiser and learning rate."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from ..models.registry import Backbone


def learning_rate(step: int, steps: int, warmup: float) -> float:
    """Share of the peak rate: linear rise over the first ``warmup`` of the steps, then a half cosine to 0."""
    rise = max(1, round(steps * warmup))
    if step < rise:
        return (step + 1) / rise
    return 0.5 + 0.5 * math.cos(math.pi * (step - rise) / max(1, steps - rise))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights decay; norms, biases, tables of attention biases and what the backbone excepts do not."""
    excepted = {last for module in model.modules() if isinstance(module, Backbone) for last in module.undecayed}
    named = [(name.rpartition(".")[2], p) for name, p in model.named_parameters()]
    kept = [(p, p.ndim > 1 and last not in excepted and not last.endswith("biases")) for last, p in named]
    decayed, others = ([p for p, decays in kept if decays is wanted] for wanted in (True, False))
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
