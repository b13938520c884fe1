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


def parameter_groups(model: nn.Module, weight_decay: float, backbone_lr: float | None = None) -> list[dict[str, Any]]:
    """Groups for the optimiser, with and without weight decay; with ``backbone_lr``, two more for the backbone.

    Norms, biases, tables of attention biases and the backbone's ``undecayed`` parameters have no weight decay.
    """
    backbones = [module for module in model.modules() if isinstance(module, Backbone)]
    undecayed = {last for module in backbones for last in module.undecayed}
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": decay} for decay in (weight_decay, 0.0)]
    scaled: set[int] = set()
    if backbone_lr is not None:
        scaled = {id(p) for module in backbones for p in module.parameters()}
        groups += [{"params": [], "lr": backbone_lr, "weight_decay": decay} for decay in (weight_decay, 0.0)]
    for name, parameter in model.named_parameters():
        last = name.rpartition(".")[2]
        decays = parameter.ndim > 1 and last not in undecayed and not last.endswith("biases")
        groups[2 * (id(parameter) in scaled) + (not decays)]["params"].append(parameter)
    return groups
