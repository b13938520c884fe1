"""Learning rate schedule, and which parameters weight decay applies to."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from ..models.registry import Backbone


def learning_rate(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate: it rises linearly over ``warmup`` of the steps, then falls as a half cosine."""
    rise = max(1, round(steps * warmup))
    if step < rise:
        return (step + 1) / rise
    return 0.5 + 0.5 * math.cos(math.pi * (step - rise) / max(1, steps - rise))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for the optimiser, with and without weight decay.

    Norms, biases, tables of attention biases and the backbone's ``undecayed`` parameters have no weight decay.
    """
    undecayed = {last for module in model.modules() if isinstance(module, Backbone) for last in module.undecayed}
    decayed, others = [], []
    for name, parameter in model.named_parameters():
        last = name.rpartition(".")[2]
        decays = parameter.ndim > 1 and last not in undecayed and not last.endswith("biases")
        (decayed if decays else others).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
