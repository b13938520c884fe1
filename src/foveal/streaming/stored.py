"""Networks as descriptions in JSON, from which the steps for an image of any size follow without torch.

A description has ``min_size``, ``channels`` of the image, ``outputs``, and ``steps`` in order. A step has its ``name``,
``in`` (the names of the steps that it reads), ``channels``, ``op``, and what the operation needs:

=========  ============================================================================================
op
=========  ============================================================================================
pad        the border is repeated at the right and bottom up to a ``multiple``
conv       ``kernel``, ``stride``, ``dilation``, ``groups``, ``of`` (a :class:`Weight`), perhaps ``act``
add        of two maps
shift      a constant ``addend``
enlarge    bicubic interpolation by ``factor`` with the parameter ``a``
shuffle    pixel shuffle by ``factor``
crop       to the size of the image, divided by the stride and rounded up
sum_keys   the sums of linear attention with heads of ``head_dim`` channels
attend     linear attention, ``head_dim`` and ``eps`` of the normaliser
=========  ============================================================================================

Weights are keys of a checkpoint. Of a weight that computes queries, keys and values, ``rows`` are those that are used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .geometry import (
    CroppingGeometry,
    EnlargingGeometry,
    Geometry,
    PaddingGeometry,
    PointwiseGeometry,
    ShufflingGeometry,
    SlidingGeometry,
    power_of_two_below,
)
from .regions import Extent
from .steps import SOURCE, Program, Step

_BICUBIC_REACH = 2  # places on each side that bicubic interpolation reads


@dataclass(frozen=True)
class Weight:
    """Where the weights of a convolution are in a checkpoint.

    Attributes:
        weight: key of the kernel.
        bias: key of the bias; empty: there is none.
        norm: keys of the weight, bias, mean and variance of the batch norm that follows; empty: none follows.
        eps: of the norm.
        rows: which of queries (0), keys (1) and values (2) are used; empty: all rows.
        head_dim: channels of a head, where rows are chosen.
    """

    weight: str
    bias: str = ""
    norm: tuple[str, ...] = ()
    eps: float = 0.0
    rows: tuple[int, ...] = ()
    head_dim: int = 0

    def read(self, arrays: Mapping[str, NDArray[Any]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Kernel and bias, with the norm folded into them."""
        kernel = self._chosen(arrays[self.weight].astype(np.float64))
        bias = self._chosen(arrays[self.bias].astype(np.float64)) if self.bias else np.zeros(len(kernel))
        if self.norm:
            gain, offset, mean, variance = (arrays[key].astype(np.float64) for key in self.norm)
            gain = gain / np.sqrt(variance + self.eps)
            kernel, bias = kernel * gain[:, None, None, None], (bias - mean) * gain + offset
        return kernel.astype(np.float32), bias.astype(np.float32)

    def _chosen(self, array: NDArray[np.float64]) -> NDArray[np.float64]:
        if not self.rows:
            return array
        rest = array.shape[1:]
        return array.reshape(-1, 3, self.head_dim, *rest)[:, list(self.rows)].reshape(-1, *rest)


@dataclass(frozen=True)
class Convolution(SlidingGeometry):
    """A convolution whose padding keeps the size, divided by the stride and rounded up, and an activation.

    Attributes:
        groups: of the channels.
        weight: where its weights are.
        act: name of the activation; empty: none.
    """

    groups: int
    weight: Weight
    act: str


@dataclass(frozen=True)
class Adding(PointwiseGeometry):
    """The sum of two maps."""


@dataclass(frozen=True)
class Shifting(PointwiseGeometry):
    """A constant is added to all values."""

    addend: float


@dataclass(frozen=True)
class Bicubic(EnlargingGeometry):
    """Bicubic interpolation, ``a`` as in :class:`foveal.layers.resample.BicubicUpsample`."""

    a: float


@dataclass(frozen=True)
class Attention(PointwiseGeometry):
    """Linear attention from the sums of :class:`KeySumsArray` and the queries of all scales.

    Attributes:
        head_dim: channels of a head.
        eps: of the normaliser, scaled as the sums are.
    """

    head_dim: int
    eps: float


@dataclass(frozen=True)
class KeySumsArray:
    """The sums of linear attention with NumPy, as :class:`~.operations.KeySums` computes them with torch.

    Attributes:
        head_dim: channels of a head.
        scale: of the result.
    """

    head_dim: int
    scale: float

    def partial(self, maps: Sequence[NDArray[Any]], counted: NDArray[np.bool_] | None) -> NDArray[np.float64]:
        """The sum over the places of a piece: maps ``(heads * 2 * D, h, w)`` to ``(scales * heads, D, D + 1)``."""
        sums = []
        for each in maps:
            rows = each.reshape(-1, 2, self.head_dim, each.shape[1] * each.shape[2]).astype(np.float64)
            keys, values = np.maximum(rows[:, 0], 0), rows[:, 1]
            if counted is not None:
                keys = keys * counted.reshape(-1)
            context = keys @ values.transpose(0, 2, 1)
            sums.append(np.concatenate([context, keys.sum(2, keepdims=True)], axis=2))
        return np.concatenate(sums)

    def finish(self, total: NDArray[np.float64]) -> NDArray[np.float32]:
        """The result from the sum over all places."""
        return (total * self.scale).astype(np.float32)


def stored_program(description: Mapping[str, Any], height: int, width: int, weights: Any = None) -> Program:
    """The steps of a described network for an image of ``height`` x ``width`` pixels.

    Args:
        description: as the docstring of this module says.
        height, width: of the image.
        weights: what the executor gets as :attr:`~.steps.Program.weights`.

    Raises:
        InputError: an image smaller than the network takes.
    """
    least = description["min_size"]
    if min(height, width) < least:
        raise InputError(
            f"image of {height}x{width} (H x W) is smaller than the model's minimum of {least}x{least}: enlarge or "
            "pad it"
        )
    image = Extent(height, width, Fraction(1))
    steps = {SOURCE: Step(SOURCE, "", (), description["channels"], image)}
    for entry in description["steps"]:
        name, inputs = entry["name"], tuple(entry["in"])
        sizes = [steps[each].extent for each in inputs]
        places = next((size.places for size in sizes if size is not None), 0)
        if entry["op"] == "sum_keys":
            fields: dict[str, Any] = {"reduction": KeySumsArray(entry["head_dim"], power_of_two_below(places))}
        else:
            operation = _operation(entry, image, [size for size in sizes if size is not None])
            fields = {"operation": operation, "extent": operation.extent(sizes)}
            if isinstance(operation, Convolution):
                into = steps[inputs[0]].channels // operation.groups
                fields["arithmetic"] = entry["channels"] * into * entry["kernel"] ** 2
        steps[name] = Step(name, name, inputs, entry["channels"], **fields)
    return Program(image, description["channels"], steps, tuple(description["outputs"]), weights)


def _operation(entry: Mapping[str, Any], image: Extent, sizes: Sequence[Extent]) -> Geometry:
    """The operation of a step whose input maps have these sizes."""
    op, size = entry["op"], sizes[0]
    if op == "conv":
        kernel, stride, dilation = entry["kernel"], entry["stride"], entry["dilation"]
        pads = dilation * (kernel - 1) // 2
        of = entry["of"]
        weight = Weight(of["weight"], of.get("bias", ""), tuple(of.get("norm", ())), of.get("eps", 0.0))
        if "rows" in of:
            weight = replace(weight, rows=tuple(of["rows"]), head_dim=of["head_dim"])
        sides = ((kernel, kernel), (stride, stride), (pads, pads), (dilation, dilation))
        return Convolution(*sides, entry["groups"], weight, entry.get("act", ""))
    if op == "pad":
        bottom, right = (-side % entry["multiple"] for side in size[:2])
        return PaddingGeometry(0, right, 0, bottom)
    if op == "crop":
        height, width = (-(-side // size.stride) for side in image[:2])
        return CroppingGeometry(int(height), int(width))
    if op == "attend":
        return Attention(entry["head_dim"], entry["eps"] * power_of_two_below(size.places))
    if op == "enlarge":
        return Bicubic(entry["factor"], _BICUBIC_REACH, entry["a"])
    if op == "shuffle":
        return ShufflingGeometry(entry["factor"])
    if op == "shift":
        return Shifting(entry["addend"])
    if op == "add":
        return Adding()
    raise ValueError(f"unknown operation {op!r} in a description of steps")
