"""Modules that mix places within windows, as a sequence of parts that are traced or called as one step."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..layers.windows import Part


class WindowPart(nn.Module):
    """A part of a module that is one step; see :class:`~foveal.layers.windows.Part`."""

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.function, self.window = part

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Parts(nn.Module):
    """The parts of a module, one after the other."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.whole = module  # whose parameters the functions of the parts use
        parts: list[Part] = module.parts()
        self.order = nn.ModuleList(
            part.function if part.window == 0 and isinstance(part.function, nn.Module) else WindowPart(part)
            for part in parts
        )

    def forward(self, x: Tensor) -> Tensor:
        for part in self.order:
            x = part(x)
        return x


def has_parts(module: nn.Module) -> bool:
    """Whether a module lists its parts."""
    return callable(getattr(module, "parts", None))
