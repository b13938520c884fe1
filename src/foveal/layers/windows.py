"""Cut maps into windows of tokens and join them again, with padding that can be excluded from the computation."""

from __future__ import annotations

import torch
from torch import Tensor

from .resample import ceil_div


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
        # All indices are computed over flat ranges. If the number of windows were a dimension of a shape, torch would
        # check whether it is 1, and a traced graph would be valid only for the result of that check.
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
        """Tokens in a row of the windows that start at column ``left``."""
        return (self.width - left).clamp(max=self.size) if neutral else self.size

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


def to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """Reshape ``(B, height * width, C)`` to ``(B, C, height, width)``, channels last in memory."""
    # The tensor is unfolded before it is transposed. In the other order, the backward pass of a batch norm in
    # evaluation mode confuses channels for the strides of a single image (at least in torch 2.15).
    return tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)


def _divmod(n: Tensor, divisor: Tensor | int) -> tuple[Tensor, Tensor]:
    """Quotient and remainder of numbers from 0 up, without ``%``, which has no ONNX translation for a traced number."""
    quotient = n // divisor
    return quotient, n - quotient * divisor
