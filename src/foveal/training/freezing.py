"""Keep parts of a model as they are: parameters, and the statistics of their norms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import nn

from ..errors import ConfigError, nearest
from ..layers.conv import LayerNorm2d
from ..layers.sync_norm import batch_norms
from ..models.registry import Backbone

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, LayerNorm2d)


def freeze(model: nn.Module, parts: Sequence[str]) -> list[nn.Module]:
    """Exclude parts of a model from training.

    Args:
        model: a model with a backbone.
        parts: "backbone"; "stem"; "stage2" for the stem and the stages up to the second; "norms" for all norms.

    Returns:
        The batch norms that must keep their statistics, too.

    Raises:
        ConfigError: a part does not exist, or nothing is left to train.
    """
    if not parts:
        return []
    backbone = cast(Backbone, model.backbone)
    stages = [f"stage{number}" for number in range(1, len(backbone.stages) + 1)]
    frozen: list[nn.Module] = []
    for part in parts:
        if part == "norms":
            frozen += [module for module in model.modules() if isinstance(module, NORMS)]
        elif part == "backbone":
            frozen.append(backbone)
        elif part == "stem" or part in stages:
            frozen += [backbone.stem, *list(backbone.stages)[: stages.index(part) + 1 if part in stages else 0]]
        else:
            raise ConfigError(f"freeze={part!r}{nearest(part, ['backbone', 'stem', 'norms', *stages])}")
    for module in frozen:
        module.requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError(f"freeze={list(parts)}: nothing is left to train")
    return list(dict.fromkeys(norm for module in frozen for norm in batch_norms(module)))


def keep_statistics(model: nn.Module) -> list[nn.Module]:
    """The batch norms whose scale is not trained, where a few parameters are tuned: they keep their statistics.

    The frozen layers behind such a norm were trained for the outputs that it gives with these statistics.
    """
    return [norm for norm in batch_norms(model) if norm.weight is None or not norm.weight.requires_grad]
