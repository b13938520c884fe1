"""What a model costs: parameters and multiply-accumulates, counted on the meta device, so that no memory is needed."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .layers.resample import BicubicUpsample


class Costs(NamedTuple):
    """Of one image."""

    params: int
    macs: int  #: of convolutions and matrix products


def _sum(shape: tuple[int, ...], *args: Any, **kwargs: Any) -> int:
    """Linear attention sums its keys; the authors' code has that sum as a product with a column of ones."""
    return 2 * math.prod(shape)


def count(model: nn.Module, in_chans: int, size: tuple[int, int]) -> Costs:
    """Count what ``model`` takes for one image of ``in_chans`` channels and ``size`` (H, W) pixels.

    MACs are those of convolutions and matrix products, as the papers print them: norms, activations, pooling and
    resizing are free, also where we write the resizing as a convolution.

    Args:
        model: built on the meta device (``with torch.device("meta")``), in evaluation mode.
    """
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.sum: _sum})
    with counter, torch.inference_mode():
        model(torch.empty(1, in_chans, *size, device="meta"))
    counts = counter.get_flop_counts()
    resizing = (name for name, module in model.named_modules() if isinstance(module, BicubicUpsample))
    free = sum(sum(counts.get(f"{type(model).__name__}.{name}", {}).values()) for name in resizing)
    return Costs(sum(p.numel() for p in model.parameters()), (counter.get_total_flops() - free) // 2)
