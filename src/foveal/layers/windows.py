"""Cut maps into windows of tokens and join them again, with padding that can be excluded from the computation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .leaf import leaf
from .resample import ceil_div, crop


class Part(NamedTuple):
    """A part of a module that maps a map to a map, and how far it mixes places; a module lists its parts in order.

    Attributes:
        function: of a map.
        window: side of the windows, from the first row and column on, to which it is confined: 1 if each place is
            computed by itself. 0: ``function`` is a module of further layers. ``None``: it mixes the whole map.
    """

    function: Callable[[Tensor], Tensor]
    window: int | None


class Windows:
    """Square windows over maps of one size, row by row; windows at the right and bottom may reach beyond the map.

    Args:
        size: tokens on a side of a window.
        height: rows of the map.
        width: columns of the map.
        neutral: order of the tokens in a window that reaches beyond the map. ``False``: row by row, with the padding
            in its place. ``True``: first the tokens of the map row by row, then the padding, so that a scan from the
            first token to the last reads the tokens of the map as if the window contained nothing else.
        device: device of the maps.
    """

    def __init__(self, size: int, height: int, width: int, *, neutral: bool, device: torch.device) -> None:
        self.size, self.height, self.width = size, height, width
        self._from, self._inside, self._to = _indices(size, height, width, neutral, device)

    def cut(self, x: Tensor) -> Tensor:
        """Cut ``(B, C, height, width)`` into ``(B * windows, size * size, C)``, with zeros beyond the map."""
        tokens = x.flatten(2).transpose(1, 2).index_select(1, self._from)
        tokens = tokens.masked_fill(~self._inside[:, None], 0)
        return tokens.flatten(0, 1).reshape(-1, self.size * self.size, x.shape[1])

    def valid(self, batch: int) -> Tensor:
        """Return a mask, False for padding, of the tokens of ``batch`` maps: ``(B * windows, size * size)`` boolean."""
        return self._inside.repeat(batch).reshape(-1, self.size * self.size)

    def join(self, tokens: Tensor) -> Tensor:
        """Join the windows of :meth:`cut` to maps again, without the padding."""
        tokens = tokens.flatten(0, 1).reshape(-1, self._from.shape[0], tokens.shape[-1])
        return to_map(tokens.index_select(1, self._to), self.height, self.width)


@leaf
def _indices(size: int, height: int, width: int, neutral: bool, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for each place in the windows, its token and whether it is in the map; for each token, its place.

    In an exported graph of fixed size they are constants, so that no runtime computes them for every image.
    """
    if torch.compiler.is_exporting() and _is_fixed(height, width):
        source, inside, target = _places(np, size, height, width, neutral)
        source, inside, target = (torch.tensor(values, device=device) for values in (source * inside, inside, target))
        return source, inside, target
    source, inside, target = _places(torch, size, height, width, neutral, device=device)
    return source * inside.long(), inside, target


def _places(arrays: Any, size: int, height: int, width: int, neutral: bool, **where: Any) -> tuple[Any, Any, Any]:
    """Compute :func:`_indices` with ``torch``, on the device of the keyword, or with ``numpy``.

    The tokens of places beyond the map mean nothing.
    """
    # All indices are computed over flat ranges. If the number of windows were a dimension of a shape, torch would
    # check whether it is 1, and a traced graph would be valid only for the result of that check.
    columns, tokens = ceil_div(width, size), size * size
    window, place = _divmod(arrays.arange(ceil_div(height, size) * columns * tokens, **where), tokens)
    row, column = _divmod(window, columns)
    top, left = row * size, column * size

    def across(left: Any) -> Any:
        """Tokens in a row of the windows that start at column ``left``."""
        return arrays.minimum(width - left, arrays.full_like(left, size)) if neutral else size

    row, column = _divmod(place, across(left))
    inside = arrays.logical_and(arrays.logical_and(row < size, top + row < height), left + column < width)
    source = (top + row) * width + left + column
    row, column = _divmod(arrays.arange(height * width, **where), width)
    (down, row), (right, column) = _divmod(row, size), _divmod(column, size)
    target = (down * columns + right) * tokens + row * across(right * size) + column
    return source, inside, target


def _is_fixed(*sides: int) -> bool:
    """Whether these sides are numbers, not symbols of a tracer."""
    return all(isinstance(side, int) for side in sides)


@leaf
def cut_map(x: Tensor, size: int) -> Tensor:
    """Cut ``(B, C, H, W)`` into ``(B * windows, C, size, size)``, windows row by row, with zeros beyond the map."""
    b, c, h, w = x.shape
    exporting, rows, columns = torch.compiler.is_exporting(), ceil_div(h, size), ceil_div(w, size)
    if exporting and not _is_fixed(h, w):  # see _places; reshaping is faster
        return to_map(Windows(size, h, w, neutral=False, device=x.device).cut(x), size, size)
    if not exporting or (rows * size, columns * size) != (h, w):  # a file needs no padding of nothing
        x = F.pad(x, (0, columns * size - w, 0, rows * size - h))
    return x.reshape(b, c, rows, size, columns, size).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, size, size)


@leaf
def join_map(windows: Tensor, height: int, width: int) -> Tensor:
    """Join the windows of :func:`cut_map` to maps of ``height`` rows and ``width`` columns again."""
    c, size = windows.shape[1:3]
    if torch.compiler.is_exporting() and not _is_fixed(height, width):
        tokens = windows.flatten(2).transpose(1, 2)
        return Windows(size, height, width, neutral=False, device=windows.device).join(tokens)
    rows, columns = ceil_div(height, size), ceil_div(width, size)
    x = windows.reshape(-1, rows, columns, c, size, size).permute(0, 3, 1, 4, 2, 5)
    return crop(x.reshape(-1, c, rows * size, columns * size), height, width)


def to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """Reshape ``(B, height * width, C)`` to ``(B, C, height, width)``, channels last in memory."""
    # The tensor is unfolded before it is transposed. In the other order, the backward pass of a batch norm in
    # evaluation mode confuses channels for the strides of a single image (at least in torch 2.15).
    return tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)


def _divmod(n: Any, divisor: Any) -> tuple[Any, Any]:
    """Quotient and remainder of numbers from 0 up, without ``%``, which has no ONNX translation for a traced number."""
    quotient = n // divisor
    return quotient, n - quotient * divisor
