"""Layers that share their parameters (ALBERT, arXiv 1909.11942, section 3.1; Universal Transformers, 1807.03819)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from ..errors import ConfigError


class SharedLayers(nn.Sequential):
    """A stack of ``times`` layers that consists of ``groups`` blocks: neighbouring layers are the same block.

    Layer ``l`` is block ``l // (times / groups)``. One block for all is ALBERT's default; as many as layers is an
    ordinary stack, whose state dict has the same names. Parameters, gradients and files hold each block once;
    computation and activations are those of ``times`` layers: sharing saves memory for weights, and no MACs.

    Args:
        block: what is shared. A function makes each block afresh; of a module, further blocks are copies, which start
            with equal weights (as in ``torch.nn.TransformerEncoder``). It maps ``x``, and whatever else ``forward`` is
            given, to the next ``x``.
        times: layers.
        groups: blocks, 1 to ``times``.

    Raises:
        ConfigError: ``times`` or ``groups`` out of range.
    """

    def __init__(self, block: nn.Module | Callable[[], nn.Module], times: int, groups: int = 1) -> None:
        if not 1 <= groups <= times:
            raise ConfigError(
                f"times={times}, groups={groups}: give at least 1 layer, and 1 to {times} blocks for them"
            )
        if isinstance(block, nn.Module):
            blocks = [block, *(copy.deepcopy(block) for _ in range(groups - 1))]
        else:
            blocks = [block() for _ in range(groups)]
        super().__init__(*blocks)
        self.times = times

    def layers(self) -> Iterator[nn.Module]:
        """The block of each layer, in order."""
        # In floating point, as published ALBERTs are run: 18 layers of 14 blocks come out one off in exact arithmetic.
        return (self[int(i / (self.times / len(self)))] for i in range(self.times))

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        for block in self.layers():
            x = block(x, *args, **kwargs)
        return x

    def extra_repr(self) -> str:
        return self.summary()

    def summary(self) -> str:
        """What is shared and what that saves, in a line."""
        own = sum(p.numel() for p in self.parameters())
        unshared = sum(p.numel() for block in self.layers() for p in block.parameters())
        blocks = f"{len(self)} block{'s' if len(self) > 1 else ''}"
        return (
            f"{self.times} layers share {blocks}: {own / 1e6:.2f} M parameters instead of {unshared / 1e6:.2f} M; "
            f"MACs and activations are those of {self.times} layers"
        )


def shared_layers(model: nn.Module) -> list[SharedLayers]:
    """The stacks of ``model`` in which layers do share."""
    return [part for part in model.modules() if isinstance(part, SharedLayers) and len(part) < part.times]
