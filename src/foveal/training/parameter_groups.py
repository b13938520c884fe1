"""Groups of parameters for the optimiser: their learning rates and weight decay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..models.registry import Backbone


def parameter_groups(
    model: nn.Module, weight_decay: float, backbone_lr: float | None = None, lr: float = 1.0, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Groups for the optimiser, with and without weight decay; with ``backbone_lr``, two more for the backbone.

    Norms, biases, tables of attention biases and the backbone's ``undecayed`` parameters have no weight decay.

    Args:
        model: the model.
        weight_decay: of the parameters that have one.
        backbone_lr: learning rate of the backbone; ``None``: that of the others.
        lr: learning rate of the others; it counts with ``layer_decay`` only.
        layer_decay: factor of the learning rate from each block of the backbone to the one before it. Below 1, there
            are two groups for each block (arXiv 2106.08254, section 3.1).
    """
    backbones = [module for module in model.modules() if isinstance(module, Backbone)]
    undecayed = {last for module in backbones for last in module.undecayed}
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": decay} for decay in (weight_decay, 0.0)]
    place: dict[int, int] = {}  # of a parameter's pair of groups, if it is not the first
    if layer_decay != 1:
        numbers = {key: number for module in backbones for key, number in layer_numbers(module).items()}
        deepest = max(numbers.values(), default=0)
        for number in range(deepest + 1):
            rate = (lr if backbone_lr is None else backbone_lr) * layer_decay ** (deepest + 1 - number)
            groups += [{"params": [], "lr": rate, "weight_decay": decay} for decay in (weight_decay, 0.0)]
        place = {key: number + 1 for key, number in numbers.items()}
    elif backbone_lr is not None:
        place = {id(p): 1 for module in backbones for p in module.parameters()}
        groups += [{"params": [], "lr": backbone_lr, "weight_decay": decay} for decay in (weight_decay, 0.0)]
    for name, parameter in model.named_parameters():
        last = name.rpartition(".")[2]
        decays = parameter.ndim > 1 and last not in undecayed and not last.endswith("biases")
        groups[2 * place.get(id(parameter), 0) + (not decays)]["params"].append(parameter)
    return groups


def layer_numbers(backbone: Backbone) -> Mapping[int, int]:
    """The number of the layer of each parameter of a backbone, by its id: 0 for the stem, then 1 for each block.

    What belongs to a stage but to none of its blocks is in the layer of its first block; what belongs to no stage, such
    as a last norm, is in the last layer.
    """
    stages = [blocks_of_stage(stage) for stage in backbone.stages]
    numbers = {id(p): sum(map(len, stages)) for p in backbone.parameters()}
    layer = 0
    for stage, blocks in zip(backbone.stages, stages, strict=True):
        numbers |= {id(p): layer + 1 for p in stage.parameters()}
        for block in blocks:
            layer += 1
            numbers |= {id(p): layer for p in block.parameters()}
    return numbers | {id(p): 0 for p in backbone.stem.parameters()}


def blocks_of_stage(stage: nn.Module) -> list[nn.Module]:
    """The blocks of a stage: its parts, otherwise its attribute ``blocks``, otherwise the stage itself."""
    return list(stage if isinstance(stage, nn.Sequential) else getattr(stage, "blocks", (stage,)))
