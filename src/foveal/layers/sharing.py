"""Layers that share their parameters (ALBERT, arXiv 1909.11942, section 3.1; Universal Transformers, 1807.03819)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from ..errors import ConfigError


class SharedLayers(nn.Sequential):
    """A stack of ``times`` layers made of ``groups`` blocks: neighbouring layers share a block.

    Layer ``l`` is block ``l // (times / groups)``. ALBERT's default is one block for all layers. With as many blocks as
    layers it is an ordinary stack, with the same names in its state dict. Parameters, gradients and checkpoints hold
    each block once; computation and activations are those of ``times`` layers. Sharing saves memory for weights but no
    MACs.

    Args:
        block: the block, which maps ``x`` and any further arguments of ``forward`` to the next ``x``. A function is
            called once for each block. A module is copied for further blocks, which start with the same weights (as in
            ``torch.nn.TransformerEncoder``).
        times: number of layers.
        groups: number of blocks, 1 to ``times``.

    Raises:
        ConfigError: ``times`` or ``groups`` out of range.
    """

    def __init__(self, block: nn.Module | Callable[[], nn.Module], times: int, groups: int = 1) -> None:
        if not 1 <= groups <= times:
            raise ConfigError(f"times={times}, groups={groups}: give times of 1 or more and groups from 1 to times")
        if isinstance(block, nn.Module):
            blocks = [block, *(copy.deepcopy(block) for _ in range(groups - 1))]
        else:
            blocks = [block() for _ in range(groups)]
        super().__init__(*blocks)
        self.times = times

    def layers(self) -> Iterator[nn.Module]:
        """Yield the block of each layer, in order."""
        # In floating point, as transformers computes it for published ALBERTs: with exact arithmetic, one layer of 18
        # with 14 blocks would be another block.
        return (self[int(i / (self.times / len(self)))] for i in range(self.times))

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        for block in self.layers():
            x = block(x, *args, **kwargs)
        return x

    def extra_repr(self) -> str:
        return self.summary()

    def summary(self) -> str:
        """Describe in one line how many layers share how many blocks, and the parameters that this saves."""
        shared = sum(p.numel() for p in self.parameters())
        unshared = sum(p.numel() for block in self.layers() for p in block.parameters())
        blocks = f"{len(self)} block{'s' if len(self) > 1 else ''}"
        return (
            f"{self.times} layers share {blocks}: {shared / 1e6:.2f} M parameters instead of {unshared / 1e6:.2f} M; "
            f"MACs and activations are those of {self.times} layers"
        )


def shared_layers(model: nn.Module) -> list[SharedLayers]:
    """Return the stacks of ``model`` that have fewer blocks than layers."""
    return [part for part in model.modules() if isinstance(part, SharedLayers) and len(part) < part.times]
