"""Cutting maps into windows of tokens, and putting them together again; with or without a trace of the padding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .resample import ceil_div


def to_windows(x: Tensor, size: int) -> Tensor:
    """Cut ``(B, C, H, W)``, zero-padded at the right and bottom, into windows of ``size`` x ``size`` tokens.

    Returns:
        Tensor: ``(B * windows, size * size, C)``: windows row by row, and tokens row by row inside each.
    """
    b, c, height, width = x.shape
    rows, columns = ceil_div(height, size), ceil_div(width, size)
    x = F.pad(x, (0, columns * size - width, 0, rows * size - height))
    x = x.reshape(b, c, rows, size, columns, size).permute(0, 2, 4, 3, 5, 1)
    return x.reshape(b * rows * columns, size * size, c)


def from_windows(tokens: Tensor, size: int, height: int, width: int) -> Tensor:
    """The ``(B, C, height, width)`` map that :func:`to_windows` has cut into ``tokens``."""
    rows, columns = ceil_div(height, size), ceil_div(width, size)
    x = tokens.reshape(-1, rows, columns, size, size, tokens.shape[-1]).permute(0, 5, 1, 3, 2, 4)
    return x.flatten(4, 5).flatten(2, 3)[:, :, :height, :width]


class Inside:
    """Which tokens of padded windows lie inside a map, and how to bring them to the front of their windows.

    With the map's tokens first and the padding behind them, whatever goes through a window from its first token to its
    last meets them as if the window were as small as its part of the map.

    Attributes:
        valid: ``(windows, size * size)`` boolean, after :meth:`first`: tokens of the map.

    Args:
        size: side of the windows.
        height: of the map.
        width: of the map.
        device: of the tokens.
    """

    def __init__(self, size: int, height: int, width: int, device: torch.device) -> None:
        last = size * size - 1
        place = torch.arange(size * size, device=device)
        # Rows and columns of the map in each row and each column of windows: fewer in the last ones.
        tall = (height - size * torch.arange(ceil_div(height, size), device=device)).clamp(max=size)[:, None, None]
        wide = (width - size * torch.arange(ceil_div(width, size), device=device)).clamp(max=size)[None, :, None]
        self.valid = (place < tall * wide).flatten(0, 1)
        # The k-th token of a part that is `wide` columns wide, and back. What the padding gets does not matter.
        order = (place // wide * size + place % wide).clamp(max=last)
        back = (place // size * wide + place % size).clamp(max=last)
        self._order = order.expand(tall.shape[0], -1, -1).flatten(0, 1)
        self._back = back.expand(tall.shape[0], -1, -1).flatten(0, 1)

    def first(self, tokens: Tensor) -> Tensor:
        """Bring the map's tokens to the front of each window of ``(B * windows, size * size, C)``."""
        return self._gather(tokens, self._order)

    def back(self, tokens: Tensor) -> Tensor:
        """Undo :meth:`first` for the map's tokens; the padding gets any values."""
        return self._gather(tokens, self._back)

    def _gather(self, tokens: Tensor, index: Tensor) -> Tensor:
        images = tokens.unflatten(0, (-1, index.shape[0]))
        index = index[None, :, :, None].expand(images.shape[0], -1, -1, images.shape[-1])
        return images.gather(2, index).flatten(0, 1)
