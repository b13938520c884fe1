"""Operations on windows of maps: which part of the inputs a part of the output needs, and how it is computed from it.

Each operation knows the size of the whole map. Where a window ends inside the map, the operation reads the places
beside it; where it ends at a border of the map, it pads there as the network itself does. So a part of the output is
what it is in the whole map, and margins follow from the kernels, strides and dilations of the modules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.resample import BicubicUpsample
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


class UnstreamableError(Exception):
    """Why an operation cannot be computed in pieces; the name of its layer is added where it is known."""


class Operation(Protocol):
    """An operation whose output at a place depends on a bounded window of its inputs.

    ``extents`` are those of the inputs, ``None`` for a tensor that is the same for all places.
    """

    def extent(self, extents: Sequence[Extent | None]) -> Extent:
        """Size of the output."""
        ...

    def needs(self, out: Region, extents: Sequence[Extent | None]) -> list[Region | None]:
        """The part of each input that ``out`` is computed from, inside that input."""
        ...

    def run(self, values: Sequence[Value], out: Region, extents: Sequence[Extent | None]) -> Tensor:
        """Compute ``out`` from windows that hold what it needs, and perhaps more."""
        ...


@dataclass(frozen=True)
class Pointwise:
    """A function of the channels of each place.

    Attributes:
        function: called with all inputs, in their order.
    """

    function: Callable[..., Tensor]

    def extent(self, extents: Sequence[Extent | None]) -> Extent:
        sizes = {extent for extent in extents if extent is not None}
        if len(sizes) != 1:
            described = " and ".join(f"{size.height}x{size.width}" for size in sizes)
            raise UnstreamableError(f"it joins maps of different sizes, {described}")
        return sizes.pop()

    def needs(self, out: Region, extents: Sequence[Extent | None]) -> list[Region | None]:
        return [None if extent is None else out for extent in extents]

    def run(self, values: Sequence[Value], out: Region, extents: Sequence[Extent | None]) -> Tensor:
        return self.function(*(value.cut(out) if isinstance(value, Window) else value for value in values))


@dataclass(frozen=True)
class Sliding:
    """A module that slides a kernel over the map: a convolution or a pooling.

    Attributes:
        module: called with an input that is padded already.
        kernel: (rows, columns).
        stride: in both directions.
        padding: places at the top and bottom, and at the left and right.
        dilation: of the kernel.
        fill: value of the padding.
    """

    module: Callable[[Tensor], Tensor]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    fill: float = 0.0

    @classmethod
    def convolution(cls, conv: nn.Conv2d) -> Sliding:
        """The operation of a convolution, whose own padding is removed."""
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise UnstreamableError(f"its padding is {conv.padding_mode}, {conv.padding}")
        padding = (conv.padding[0], conv.padding[1])
        conv.padding = (0, 0)
        return cls(conv, _pair(conv.kernel_size), _pair(conv.stride), padding, _pair(conv.dilation))

    def extent(self, extents: Sequence[Extent | None]) -> Extent:
        (size,) = extents
        assert size is not None
        if self.stride[0] != self.stride[1]:
            raise UnstreamableError(f"its stride is {self.stride}")
        height, width = (
            (side + 2 * pad - step * (kernel - 1) - 1) // stride + 1
            for side, pad, step, kernel, stride in zip(
                size[:2], self.padding, self.dilation, self.kernel, self.stride, strict=True
            )
        )
        return Extent(height, width, size.stride * self.stride[0])

    def _reads(self, out: Region) -> Region:
        """What ``out`` reads, padding included."""
        spans = []
        for axis, (first, last) in enumerate(((out.top, out.bottom), (out.left, out.right))):
            start = first * self.stride[axis] - self.padding[axis]
            length = (last - first - 1) * self.stride[axis] + self.dilation[axis] * (self.kernel[axis] - 1) + 1
            spans += [start, start + length]
        return Region(*spans)

    def needs(self, out: Region, extents: Sequence[Extent | None]) -> list[Region | None]:
        (size,) = extents
        assert size is not None
        return [self._reads(out).clipped(size)]

    def run(self, values: Sequence[Value], out: Region, extents: Sequence[Extent | None]) -> Tensor:
        (window,), (size,) = values, extents
        assert isinstance(window, Window)
        assert size is not None
        reads = self._reads(out)
        inside = reads.clipped(size)
        x = window.cut(inside)
        if inside != reads:
            x = F.pad(x, _borders(inside, reads), value=self.fill)
        return self.module(x)


@dataclass(frozen=True)
class Padding:
    """Padding of the map as an operation of its own.

    Attributes:
        left, right, top, bottom: places to add.
        replicate: whether the border is repeated; otherwise zeros are added.
    """

    left: int
    right: int
    top: int
    bottom: int
    replicate: bool

    def extent(self, extents: Sequence[Extent | None]) -> Extent:
        (size,) = extents
        assert size is not None
        height, width = size.height + self.top + self.bottom, size.width + self.left + self.right
        return Extent(height, width, size.stride)

    def needs(self, out: Region, extents: Sequence[Extent | None]) -> list[Region | None]:
        (size,) = extents
        assert size is not None
        spans = []
        for first, last, before, side in (
            (out.top, out.bottom, self.top, size.height),
            (out.left, out.right, self.left, size.width),
        ):
            start = min(max(first - before, 0), side - 1)  # a part of the padding alone still reads one place
            spans += [start, max(start + 1, min(last - before, side))]
        return [Region(*spans)]

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
class Enlarging:
    """Bicubic interpolation by a whole factor, which reads two places on each side and replicates the border."""

    module: BicubicUpsample

    def extent(self, extents: Sequence[Extent | None]) -> Extent:
        (size,) = extents
        assert size is not None
        factor = self.module.factor
        return Extent(size.height * factor, size.width * factor, size.stride / factor)

    def _reads(self, out: Region) -> Region:
        inner, reach = _coarse(out, self.module.factor), self.module.reach
        return Region(inner.top - reach, inner.bottom + reach, inner.left - reach, inner.right + reach)

    def needs(self, out: Region, extents: Sequence[Extent | None]) -> list[Region | None]:
        (size,) = extents
        assert size is not None
        return [self._reads(out).clipped(size)]

    def run(self, values: Sequence[Value], out: Region, extents: Sequence[Extent | None]) -> Tensor:
        (window,), (inside,) = values, self.needs(out, extents)
        assert isinstance(window, Window)
        assert inside is not None
        reads, factor = self._reads(out), self.module.factor
        enlarged = self.module.enlarge(F.pad(window.cut(inside), _borders(inside, reads), mode="replicate"))
        return Window(enlarged, _fine(_coarse(out, factor), factor)).cut(out)


@dataclass(frozen=True)
class Shuffling:
    """Pixel shuffle: the channels of a place become a square of ``factor`` by ``factor`` places."""

    factor: int

    def extent(self, extents: Sequence[Extent | None]) -> Extent:
        (size,) = extents
        assert size is not None
        return Extent(size.height * self.factor, size.width * self.factor, size.stride / self.factor)

    def needs(self, out: Region, extents: Sequence[Extent | None]) -> list[Region | None]:
        return [_coarse(out, self.factor)]

    def run(self, values: Sequence[Value], out: Region, extents: Sequence[Extent | None]) -> Tensor:
        (window,), inner = values, _coarse(out, self.factor)
        assert isinstance(window, Window)
        shuffled = F.pixel_shuffle(window.cut(inner), self.factor)
        return Window(shuffled, _fine(inner, self.factor)).cut(out)


@dataclass(frozen=True)
class Cropping:
    """The first rows and columns of a map."""

    height: int
    width: int

    def extent(self, extents: Sequence[Extent | None]) -> Extent:
        (size,) = extents
        assert size is not None
        return Extent(min(self.height, size.height), min(self.width, size.width), size.stride)

    def needs(self, out: Region, extents: Sequence[Extent | None]) -> list[Region | None]:
        return [out]

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
        return [_fine(_coarse(out, self.side), self.side).clipped(size)]

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


def _coarse(out: Region, factor: int) -> Region:
    """Places of a map that hold ``out`` in the map ``factor`` times its size."""
    return Region(out.top // factor, -(-out.bottom // factor), out.left // factor, -(-out.right // factor))


def _fine(region: Region, factor: int) -> Region:
    return Region(*(factor * side for side in region))


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


def power_of_two_below(places: int) -> float:
    """The largest ``2^-n`` with ``2^-n * places <= 1``: scaling by it is exact, and keeps sums small in 16 bits."""
    return 2.0 ** -math.ceil(math.log2(places))


@dataclass(frozen=True)
class KeySums:
    """The two sums of linear attention, ``sum relu(k) v^T`` and ``sum relu(k)``, of all heads.

    Attributes:
        head_dim: channels of a head, D.
        scale: of the result, see :func:`power_of_two_below`.
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
