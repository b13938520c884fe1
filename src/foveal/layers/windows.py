"""Cutting maps into windows of tokens, and putting them together again; with or without a trace of the padding."""

from __future__ import annotations

import torch
from torch import Tensor

from .resample import ceil_div


class Windows:
    """Square windows over maps of one size, row by row; those at the right and bottom may reach beyond the map.

    Args:
        size: tokens on a side.
        height: of the map.
        width: of the map.
        neutral: how the tokens of a window that reaches beyond the map are ordered. ``False``: row by row, with the
            padding where it is. ``True``: those of the map row by row, then the padding, so that whatever goes from the
            first token to the last meets the map's as if the window were as small as its part of the map.
        device: of the maps.
    """

    def __init__(self, size: int, height: int, width: int, *, neutral: bool, device: torch.device) -> None:
        # Indices and tokens go through flat ranges: with the number of windows in a shape, torch would ask whether it
        # is 1, and a traced graph would be for that answer alone.
        self.size, self.height, self.width, tokens = size, height, width, size * size
        columns = ceil_div(width, size)
        window, place = _divmod(torch.arange(ceil_div(height, size) * columns * tokens, device=device), tokens)
        row, column = _divmod(window, columns)
        top, left = row * size, column * size
        row, column = _divmod(place, self._across(left, neutral))
        self._inside = (row < size) & (top + row < height) & (left + column < width)
        self._from = (top + row).clamp(max=height - 1) * width + (left + column).clamp(max=width - 1)
        row, column = _divmod(torch.arange(height * width, device=device), width)
        (down, row), (right, column) = _divmod(row, size), _divmod(column, size)
        self._to = (down * columns + right) * tokens + row * self._across(right * size, neutral) + column

    def _across(self, left: Tensor, neutral: bool) -> Tensor | int:
        """Tokens in a row of the windows that begin at column ``left``."""
        return (self.width - left).clamp(max=self.size) if neutral else self.size

    def cut(self, x: Tensor) -> Tensor:
        """Tokens of ``(B, C, height, width)``: ``(B * windows, size * size, C)``, zeros beyond the map."""
        tokens = x.flatten(2).transpose(1, 2).index_select(1, self._from)
        tokens = tokens.masked_fill(~self._inside[:, None], 0)
        return tokens.flatten(0, 1).reshape(-1, self.size * self.size, x.shape[1])

    def valid(self, batch: int) -> Tensor:
        """Which tokens of ``batch`` maps are not padding: ``(B * windows, size * size)`` boolean."""
        return self._inside.repeat(batch).reshape(-1, self.size * self.size)

    def join(self, tokens: Tensor) -> Tensor:
        """Undo :meth:`cut`, leaving the padding out."""
        tokens = tokens.flatten(0, 1).reshape(-1, self._from.shape[0], tokens.shape[-1])
        return to_map(tokens.index_select(1, self._to), self.height, self.width)


def to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """``(B, height * width, C)`` as ``(B, C, height, width)``, channels last in memory."""
    # Not transposed before it is unfolded: a single image then has strides for which torch's backward pass of a batch
    # norm in evaluation mode mixes channels up (2.15 at least).
    return tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)


def _divmod(n: Tensor, by: Tensor | int) -> tuple[Tensor, Tensor]:
    """Quotient and remainder of numbers from 0 up; the ``%`` of a traced number has no ONNX translation."""
    quotient = n // by
    return quotient, n - quotient * by
