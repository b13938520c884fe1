"""Operations on windows of maps with torch: how a part of the output is computed from the part that it needs.

Where a window ends inside the map, the operation reads the places beside it; where it ends at a border of the map, it
pads there as the network itself does. So a part of the output is what it is in the whole map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.resample import BicubicUpsample
from .geometry import (
    CroppingGeometry,
    EnlargingGeometry,
    Geometry,
    PaddingGeometry,
    PointwiseGeometry,
    ShufflingGeometry,
    SlidingGeometry,
    UnstreamableError,
    coarse,
    fine,
    only_map,
)
from .regions import Extent, Region


class Window(NamedTuple):
    """A part of a map, ``(1, C, region.height, region.width)``."""

    values: Tensor
    region: Region

    def cut(self, region: Region) -> Tensor:
        """The values of a region inside the window."""
        if region == self.region:
            return self.values
        return self.values[:, :, *region.within(self.region)]


Value = Window | Tensor  #: input of an operation: a window of a map, or a tensor that is the same for all places


class Operation(Geometry, Protocol):
    """An operation on windows, see :class:`~.geometry.Geometry`."""

    def run(self, values: Sequence[Value], out: Region, extents: Sequence[Extent | None]) -> Tensor:
        """Compute ``out`` from windows that hold what it needs, and perhaps more."""
        ...


@dataclass(frozen=True)
class Pointwise(PointwiseGeometry):
    """A function of the channels of each place.

    Attributes:
        function: called with all inputs, in their order.
    """

    function: Callable[..., Tensor]

    def run(self, values: Sequence[Value], out: Region, extents: Sequence[Extent | None]) -> Tensor:
        return self.function(*(value.cut(out) if isinstance(value, Window) else value for value in values))


@dataclass(frozen=True)
class Sliding(SlidingGeometry):
    """A module that slides a kernel over the map: a convolution or a pooling.

    Attributes:
        module: called with an input that is padded already.
        fill: value of the padding.
    """

    module: Callable[[Tensor], Tensor]
    fill: float = 0.0

    @classmethod
    def convolution(cls, conv: nn.Conv2d) -> Sliding:
        """The operation of a convolution, whose own padding is removed."""
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise UnstreamableError(f"its padding is {conv.padding_mode}, {conv.padding}")
        padding = (conv.padding[0], conv.padding[1])
        conv.padding = (0, 0)
        return cls(_pair(conv.kernel_size), _pair(conv.stride), padding, _pair(conv.dilation), conv)

    def run(self, values: Sequence[Value], out: Region, extents: Sequence[Extent | None]) -> Tensor:
        (window,) = values
        assert isinstance(window, Window)
        reads = self.reads(out)
        inside = reads.clipped(only_map(extents))
        x = window.cut(inside)
        if inside != reads:
            x = F.pad(x, _borders(inside, reads), value=self.fill)
        return self.module(x)


@dataclass(frozen=True)
class Padding(PaddingGeometry):
    """Padding of the map as an operation of its own.

    Attributes:
        replicate: whether the border is repeated; otherwise zeros are added.
    """

    replicate: bool

    def run(self, values: Sequence[Value], out: Region, extents: Sequence[Extent | None]) -> Tensor:
        (window,), (inside,) = values, self.needs(out, extents)
        assert isinstance(window, Window)
        assert inside is not None
        x = window.cut(inside)
        for dim, first, last, before, (start, end) in (
            (2, out.top, out.bottom, self.top, inside[:2]),
            (3, out.left, out.right, self.left, inside[2:]),
        ):
            if (first - before, last - before) == (start, end):
                continue
            places = torch.arange(first - before - start, last - before - start, device=x.device)
            clamped = places.clamp(0, end - start - 1)
            x = x.index_select(dim, clamped)
            if not self.replicate:
                shape = [-1, 1] if dim == 2 else [-1]
                x = x * (places == clamped).to(x.dtype).reshape(shape)
        return x


@dataclass(frozen=True)
class Enlarging(EnlargingGeometry):
    """Bicubic interpolation by a whole factor, which reads two places on each side and replicates the border."""

    module: BicubicUpsample

    @classmethod
    def of(cls, module: BicubicUpsample) -> Enlarging:
        """The operation of a module."""
        return cls(module.factor, module.reach, module)

    def run(self, values: Sequence[Value], out: Region, extents: Sequence[Extent | None]) -> Tensor:
        (window,), (inside,) = values, self.needs(out, extents)
        assert isinstance(window, Window)
        assert inside is not None
        reads, factor = self.reads(out), self.factor
        enlarged = self.module.enlarge(F.pad(window.cut(inside), _borders(inside, reads), mode="replicate"))
        return Window(enlarged, fine(coarse(out, factor), factor)).cut(out)


@dataclass(frozen=True)
class Shuffling(ShufflingGeometry):
    """Pixel shuffle."""

    def run(self, values: Sequence[Value], out: Region, extents: Sequence[Extent | None]) -> Tensor:
        (window,), inner = values, coarse(out, self.factor)
        assert isinstance(window, Window)
        shuffled = F.pixel_shuffle(window.cut(inner), self.factor)
        return Window(shuffled, fine(inner, self.factor)).cut(out)


@dataclass(frozen=True)
class Cropping(CroppingGeometry):
    """The first rows and columns of a map."""

    def run(self, values: Sequence[Value], out: Region, extents: Sequence[Extent | None]) -> Tensor:
        (window,) = values
        assert isinstance(window, Window)
        return window.cut(out)


@dataclass(frozen=True)
class InWindows:
    """A function of a map that is confined to windows: it is called with whole windows.

    Attributes:
        function: of a map whose first place is the first of a window.
        side: of the windows; those at the end of the map may reach beyond it.
    """

    function: Callable[[Tensor], Tensor]
    side: int

    def extent(self, extents: Sequence[Extent | None]) -> Extent:
        (size,) = extents
        assert size is not None
        return size

    def needs(self, out: Region, extents: Sequence[Extent | None]) -> list[Region | None]:
        (size,) = extents
        assert size is not None
        return [fine(coarse(out, self.side), self.side).clipped(size)]

    def run(self, values: Sequence[Value], out: Region, extents: Sequence[Extent | None]) -> Tensor:
        (window,), (inside,) = values, self.needs(out, extents)
        assert isinstance(window, Window)
        assert inside is not None
        return Window(self.function(window.cut(inside).contiguous()), inside).cut(out)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _borders(inside: Region, reads: Region) -> tuple[int, int, int, int]:
    """Places that ``reads`` has beyond the map, of which ``inside`` is the part within: left, right, top, bottom."""
    left, right = inside.left - reads.left, reads.right - inside.right
    return left, right, inside.top - reads.top, reads.bottom - inside.bottom


class Reduction(Protocol):
    """A sum over all places of a map, from which every place of a later map is computed.

    The sums of pieces are added in float64, in the order of the pieces.
    """

    def partial(self, values: Sequence[Tensor], counted: Tensor | None) -> Tensor:
        """The sum over the places of one piece, float64.

        Args:
            values: the inputs, all of the same region.
            counted: which places count, boolean ``(h, w)``; ``None``: all.
        """
        ...

    def finish(self, total: Tensor, places: int) -> Tensor:
        """The result, in float32, from the sum over the ``places`` places that count."""
        ...


@dataclass(frozen=True)
class Mean:
    """Mean over all places, ``(1, C, 1, 1)``, or ``(1, C)`` without ``keepdim``."""

    keepdim: bool

    def partial(self, values: Sequence[Tensor], counted: Tensor | None) -> Tensor:
        (x,) = values
        return (x if counted is None else x * counted).sum((2, 3), dtype=torch.float64)

    def finish(self, total: Tensor, places: int) -> Tensor:
        mean = (total / places).float()
        return mean[:, :, None, None] if self.keepdim else mean


@dataclass(frozen=True)
class KeySums:
    """The two sums of linear attention, ``sum relu(k) v^T`` and ``sum relu(k)``, of all heads.

    Attributes:
        head_dim: channels of a head, D.
        scale: of the result, see :func:`~.geometry.power_of_two_below`.
    """

    head_dim: int
    scale: float = 1.0

    def partial(self, values: Sequence[Tensor], counted: Tensor | None) -> Tensor:
        sums = []
        for kv in values:  # (1, heads * 2 * D, h, w) for each scale
            rows = kv.permute(0, 2, 3, 1).reshape(kv.shape[2] * kv.shape[3], -1, 2, self.head_dim).float()
            keys, values_of = F.relu(rows[:, :, 0]).transpose(0, 1), rows[:, :, 1].transpose(0, 1)  # (heads, N, D)
            if counted is not None:
                keys = keys * counted.reshape(-1, 1)
            # In float64: the rounding errors of a piece would otherwise add to those of the whole image in float32.
            context = keys.transpose(1, 2).double() @ values_of.double()
            sums.append(torch.cat([context, keys.sum(1, dtype=torch.float64).unsqueeze(2)], dim=2))
        return torch.cat(sums)  # (scales * heads, D, D + 1)

    def finish(self, total: Tensor, places: int) -> Tensor:
        return (total * self.scale).float()


def attend(queries: Sequence[Tensor], sums: Tensor, head_dim: int, eps: float) -> Tensor:
    """Linear attention of the queries of all scales, ``(1, heads * D, h, w)`` each, given the scaled sums.

    Args:
        queries: one map for each scale.
        sums: of :class:`KeySums`.
        head_dim: D.
        eps: of the normaliser, scaled as the sums are.

    Returns:
        ``(1, scales * heads * D, h, w)`` in channels-last memory.
    """
    _, channels, h, w = queries[0].shape
    heads = channels // head_dim
    out = queries[0].new_empty(1, h * w, len(queries), heads, head_dim)
    for scale, q in enumerate(queries):
        rows = F.relu(q.permute(0, 2, 3, 1).reshape(h * w, heads, head_dim)).transpose(0, 1).float()
        numerator, normaliser = (rows @ sums[scale * heads : (scale + 1) * heads]).split([head_dim, 1], dim=-1)
        out[0, :, scale] = (numerator / (normaliser + eps)).transpose(0, 1)
    return out.view(1, h, w, -1).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Attending:
    """:func:`attend` as a function of the sums and the queries of all scales."""

    head_dim: int
    eps: float

    def __call__(self, sums: Tensor, *queries: Tensor) -> Tensor:
        return attend(queries, sums, self.head_dim, self.eps)
