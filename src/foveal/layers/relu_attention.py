"""Multi-scale ReLU linear attention on channels-last maps, for inference: no concatenation and no padding.

In a map that is channels last, the tokens of a head are rows of a matrix with a stride between them, which matrix
products read without a copy. So each scale attends on its own and writes its part of the output, and the sum of the
keys, by which the attention is normalised, is one more column of the small matrix of keys and values.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attend_channels_last(qkv: Tensor, aggregate: Iterable[nn.Module], head_dim: int, eps: float) -> Tensor:
    """Return what all scales attend to, ``(B, heads * scales * head_dim, H, W)``, channels last.

    Args:
        qkv: queries, keys and values of every head one after the other, ``(B, heads * 3 * head_dim, H, W)``.
        aggregate: for each further scale a depthwise and a grouped 1x1 convolution without biases.
        head_dim: channels of a head.
        eps: epsilon of the normaliser.
    """
    b, channels, h, w = qkv.shape
    branches = list(aggregate)
    heads = channels // (3 * head_dim)
    out = qkv.new_empty(b, h * w, 1 + len(branches), heads, head_dim)
    parts = out.unbind(2)
    _attend(_split_heads(qkv, head_dim), eps, parts[0])
    for branch, part in zip(branches, parts[1:], strict=True):
        depthwise, pointwise = branch.children()
        assert isinstance(pointwise, nn.Conv2d)
        weight = pointwise.weight.view(3 * heads, head_dim, head_dim).transpose(1, 2)
        _attend(_split_heads(depthwise(qkv), head_dim) @ weight, eps, part)
    return out.view(b, h, w, -1).permute(0, 3, 1, 2)


def _split_heads(x: Tensor, head_dim: int) -> Tensor:
    """View a map as ``(B, heads * 3, H * W, head_dim)``."""
    return x.permute(0, 2, 3, 1).flatten(1, 2).unflatten(2, (-1, head_dim)).transpose(1, 2)


def _attend(groups: Tensor, eps: float, out: Tensor) -> None:
    """Write the attention of all heads, given q, k and v, ``(B, heads * 3, N, D)``, to ``out`` ``(B, N, heads, D)``."""
    q, k, v = groups.unflatten(1, (-1, 3)).unbind(2)
    q, k = F.relu(q), F.relu(k)
    sums = torch.cat([k.transpose(-2, -1) @ v, k.sum(-2).unsqueeze(-1)], dim=-1)  # (B, heads, D, D + 1)
    numerator, normaliser = (q @ sums).split([v.shape[-1], 1], dim=-1)
    torch.div(numerator, normaliser + eps, out=out.transpose(1, 2))
