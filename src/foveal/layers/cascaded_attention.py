"""Cascaded group attention of Microsoft's EfficientViT (arXiv 2305.07027, section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from .conv import ConvNormAct
from .windows import Part, cut_map, join_map


class CascadedGroupAttention(nn.Module):
    """Attention in windows, each head on its own split of the channels: ``(B, C, H, W) -> (B, C, H, W)``.

    Every head after the first adds the output of the head before to its split. Queries pass through a depthwise
    convolution. A learned bias for each distance ``(|dy|, |dx|)`` is added to the scores.

    The map is padded with zeros at the right and bottom to multiples of ``window_size``, cut into windows, and cropped
    at the end. There is no mask: padded positions take part, as in the authors' code. The table of biases is read in
    each forward pass, so the biases follow the weights when these are replaced, moved or converted.

    Args:
        channels: channels of the map, a multiple of ``num_heads``.
        num_heads: heads.
        key_dim: channels of each head's queries and keys. Its values have ``channels / num_heads``.
        kernel_sizes: sides of the depthwise kernels (odd), one per head; further entries are ignored.
        window_size: side of the windows. There is one bias for each distance within a window.
        norm_eps: epsilon of the batch norms.

    Raises:
        ConfigError: ``num_heads`` does not divide ``channels``, or there are fewer kernel sizes than heads.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        *,
        key_dim: int = 16,
        kernel_sizes: Sequence[int] = (5, 5, 5, 5),
        window_size: int = 7,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if channels % num_heads:
            raise ConfigError(f"num_heads={num_heads} does not divide {channels} channels: give a divisor")
        if len(kernel_sizes) < num_heads:
            raise ConfigError(f"kernel_sizes={tuple(kernel_sizes)}: give one size for each of {num_heads} heads")
        split_dim = channels // num_heads
        self.channels, self.key_dim, self.window_size = channels, key_dim, window_size
        # Constants: exporters would trace sizes that are read from tensors as unknowns.
        self.split = (key_dim, key_dim, split_dim)
        self.qkv = nn.ModuleList(
            ConvNormAct(split_dim, 2 * key_dim + split_dim, 1, norm_eps=norm_eps) for _ in range(num_heads)
        )
        self.query_convs = nn.ModuleList(
            ConvNormAct(key_dim, key_dim, size, groups=key_dim, norm_eps=norm_eps) for size in kernel_sizes[:num_heads]
        )
        self.project = ConvNormAct(channels, channels, 1, norm_eps=norm_eps)
        self.position_biases = nn.Parameter(torch.zeros(num_heads, window_size**2))

    def parts(self) -> list[Part]:
        """The parts of the layer, for computing large maps in pieces."""
        return [Part(self.forward, self.window_size)]

    def forward(self, x: Tensor) -> Tensor:
        return join_map(self._attend(cut_map(x, self.window_size)), x.shape[2], x.shape[3])

    def _attend(self, x: Tensor) -> Tensor:
        """Attend within each window of ``(windows, C, side, side)``; the shape is kept."""
        biases = self._biases()
        outputs: list[Tensor] = []
        splits = x.chunk(len(self.qkv), dim=1)
        for i in range(len(self.qkv)):
            y = outputs[-1] + splits[i] if outputs else splits[i]
            q, k, v = self.qkv[i](y).split(self.split, dim=1)
            scores = self.query_convs[i](q).flatten(2).transpose(1, 2) @ k.flatten(2)  # (windows, queries, keys)
            weights = (scores * self.key_dim**-0.5 + biases[i]).softmax(-1)
            outputs.append((v.flatten(2) @ weights.transpose(1, 2)).unflatten(2, (self.window_size, self.window_size)))
        return self.project(F.relu(torch.cat(outputs, dim=1)))

    def _biases(self) -> Tensor:
        """Return the bias of every pair of positions in a window, ``(heads, side^2, side^2)``."""
        side = self.window_size
        line = torch.arange(side, device=self.position_biases.device)
        distances = (line[:, None] - line).abs()  # (side, side)
        table = self.position_biases.reshape(-1, side, side)
        pairs = table[:, distances][..., distances]  # (heads, y, y', x, x')
        return pairs.transpose(2, 3).reshape(-1, side**2, side**2)


def resize_position_biases(table: Tensor, window_size: int) -> Tensor:
    """Resize a table of biases, ``(heads, side^2)``, to ``(heads, window_size^2)`` by bicubic interpolation.

    The authors do this for detection at larger image sizes. A table that has the right size already, or whose length is
    not a square, is returned unchanged.
    """
    side = math.isqrt(table.shape[-1])
    if table.ndim != 2 or side**2 != table.shape[-1] or side == window_size:
        return table
    maps = table.reshape(1, -1, side, side)
    return F.interpolate(maps, size=(window_size, window_size), mode="bicubic").reshape(-1, window_size**2)
