"""Weights of a plan in the order in which the library reads them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..images.resampling import bicubic_taps
from .library import Library
from .plan import Plan, Step


def _evaluation(points: tuple[float, ...]) -> NDArray[np.float64]:
    """Rows ``1, p, p^2`` of every point over the product of its distances to the others; the last row is infinity."""
    rows = [np.array([1, p, p * p]) / math.prod(p - other for other in points if other != p) for p in points]
    return np.stack([*rows, np.array([0, 0, 1])])


#: Transformation of a 3x3 kernel along one axis, by the side of a tile; csrc/winograd.h has the other two.
_WINOGRAD = {
    2: np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]),
    4: _evaluation((0, 0.75, -0.75, 1.5, -1.5)),
}


class Packed:
    """Weights of a plan in the order that the library reads; each is packed once and shared by all bindings."""

    def __init__(self, plan: Plan, library: Library) -> None:
        self.plan, self.library = plan, library
        self.arrays: dict[tuple[str, ...], NDArray[Any]] = {}

    def raw(self, step: Step, role: str) -> NDArray[np.float32]:
        """The weights of a role as the plan has them."""
        return self.plan.weights[step.weights[role]]

    def padded(self, step: Step, role: str, fill: float = 0.0) -> NDArray[np.float32]:
        """A vector, padded to whole vectors of the library and one more, because grouped sums run over."""

        def make() -> NDArray[np.float32]:
            values = self.raw(step, role)
            size = self.library.padded(len(values)) + 2 * self.library.width
            return np.concatenate([values, np.full(size - len(values), fill, np.float32)])

        return self._once(("padded", step.weights[role]), make)

    def panels(self, step: Step, role: str, groups: int = 1, parts: int = 1) -> NDArray[Any]:
        """Weights ``(out, in, K, K)`` in panels of output channels, group after group.

        Args:
            step: the step.
            role: of the weights in the step.
            groups: of channels.
            parts: 2: each weight as the sum of two of bfloat16.
        """

        def make() -> NDArray[Any]:
            weight = self.raw(step, role)
            rows = np.ascontiguousarray(weight.reshape(*weight.shape[:2], -1).transpose(0, 2, 1))  # (out, taps, in)
            if parts == 2:
                rows = _in_two_parts(rows, apart=self.library.parts_apart)
            if groups == 1:
                return self.library.pack(rows)
            return np.concatenate([self.library.pack(part) for part in np.split(rows, groups)])

        return self._once(("panels", step.weights[role], str(groups), str(parts)), make)

    def winograd(self, step: Step, role: str, side: int) -> NDArray[np.float32]:
        """Weights ``(out, in, 3, 3)`` for tiles of ``side``: ``(side + 2) ** 2`` products of floats in panels."""

        def make() -> NDArray[np.float32]:
            g = _WINOGRAD[side]
            weight = np.einsum("ay,oiyx,bx->aboi", g, self.raw(step, role).astype(np.float64), g, optimize=True)
            weight = weight.reshape(-1, weight.shape[2], 1, weight.shape[3]).astype(np.float32)
            return np.concatenate([self.library.pack(part, floats=True) for part in weight])

        return self._once(("winograd", step.weights[role], str(side)), make)

    def taps(self, step: Step, role: str) -> NDArray[np.float32]:
        """Depthwise weights ``(channels, 1, K, K)`` in vectors of channels."""
        return self._once(("taps", step.weights[role]), lambda: self.library.pack_depthwise(self.raw(step, role)))

    def addends(self, step: Step, role: str) -> NDArray[np.float32]:
        """What is added to the scores of attention in square windows, of a table ``(heads, side^2)`` by distance.

        Returns:
            ``(heads, side^2, side^2)``, rows padded to whole vectors.
        """

        def make() -> NDArray[np.float32]:
            table = self.raw(step, role)
            side = math.isqrt(table.shape[1])
            distances = np.abs(np.arange(side)[:, None] - np.arange(side))
            pairs = table.reshape(-1, side, side)[:, distances][..., distances]  # (heads, y, y', x, x')
            pairs = pairs.transpose(0, 1, 3, 2, 4).reshape(len(table), side**2, side**2)
            width = self.library.padded(side**2) - side**2
            return np.ascontiguousarray(np.pad(pairs, ((0, 0), (0, 0), (0, width))))

        return self._once(("addends", step.weights[role]), make)

    def _once(self, key: tuple[str, ...], make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        if key not in self.arrays:
            self.arrays[key] = make()
        return self.arrays[key]


def _in_two_parts(weight: NDArray[np.float32], *, apart: bool) -> NDArray[np.float32]:
    """Divide each weight into the number of bfloat16 next to it towards zero, and the rest.

    Both have the sign of the weight, and the rest of a weight is never zero: their products with an infinite value then
    have no sum of opposite infinities, and no product of infinity and zero.

    Args:
        weight: ``(out, taps, in)``.
        apart: whether all first parts come before all second ones.

    Returns:
        ``(out, taps, 2 * in)``, ``in`` rounded up to a whole pair: both parts of every pair of input channels in turn.
        If they are apart: ``(out, 2 * taps, in)``.
    """
    weight = np.pad(weight, ((0, 0), (0, 0), (0, weight.shape[2] % 2)))
    first = (weight.view(np.uint32) & 0xFFFF0000).view(np.float32)
    rest = np.copysign(np.maximum(np.abs(weight - first), np.finfo(np.float32).tiny), weight)
    rest = np.where(weight == 0, weight, rest)
    if apart:
        return np.concatenate([first, rest], axis=1)
    pairs = np.stack([array.reshape(*array.shape[:2], -1, 2) for array in (first, rest)], axis=3)
    return np.ascontiguousarray(pairs.reshape(*weight.shape[:2], -1))


def pack_taps(factor: int, a: float) -> NDArray[np.float32]:
    """The weights of :func:`~foveal.images.resampling.bicubic_taps` as the library reads them."""
    return bicubic_taps(factor, a).astype(np.float32)
