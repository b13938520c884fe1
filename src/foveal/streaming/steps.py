"""The steps that compute a network: each an operation on maps, a sum over a map, or a function of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .geometry import Geometry
from .regions import Extent

SOURCE = "image"  #: name of the network's input


@dataclass(frozen=True)
class Step:
    """One computation of the network. Exactly one of ``operation``, ``reduction`` and ``function`` is given.

    Attributes:
        name: unique.
        layer: name of the module in the model.
        inputs: names of the steps that it reads, in the order of its arguments.
        channels: of its output.
        extent: size of its output; ``None``: its output is the same for all places.
        operation: of a map on maps, of a kind that the executor knows.
        reduction: of a map to a tensor, of a kind that the executor knows.
        function: of tensors that are the same for all places.
        arithmetic: multiply-accumulates for each place of the output.
        dtype: of its output where that is kept; empty: the type that kept maps have.
        blank: value of its output, where that is kept, at places without data.
    """

    name: str
    layer: str
    inputs: tuple[str, ...]
    channels: int
    extent: Extent | None = None
    operation: Geometry | None = None
    reduction: Any = None
    function: Callable[..., Any] | None = None
    arithmetic: int = 0
    dtype: str = ""
    blank: int = 0


@dataclass(frozen=True)
class Program:
    """The steps that compute a network on an image of one size, in order.

    Attributes:
        image: size of the image.
        channels: of the image.
        steps: by name; the first is the image.
        outputs: names of the steps that the network returns.
        weights: what has the weights of the steps, for the executor.
    """

    image: Extent
    channels: int
    steps: Mapping[str, Step]
    outputs: tuple[str, ...]
    weights: Any = field(repr=False)

    def users(self) -> dict[str, list[Step]]:
        """The steps that read each step."""
        found: dict[str, list[Step]] = {name: [] for name in self.steps}
        for step in self.steps.values():
            for name in step.inputs:
                found[name].append(step)
        return found

    def followed_by(self, operation: Geometry, *, channels: int, dtype: str, blank: int = 0) -> Program:
        """The program with a last operation on its only output, whose result replaces that."""
        (output,) = self.outputs
        extent = operation.extent([self.steps[output].extent])
        step = Step("result", "", (output,), channels, extent, operation, dtype=dtype, blank=blank)
        return replace(self, steps={**self.steps, step.name: step}, outputs=(step.name,))
