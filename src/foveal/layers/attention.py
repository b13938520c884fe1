"""Softmax attention."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention among the tokens of ``(N, L, C)``; the shape is kept.

    Args:
        embed_dim: channels of a token.
        num_heads: heads, each of ``embed_dim // num_heads`` channels.
        qkv_bias: whether queries, keys and values have a bias.

    Source: "Attention Is All You Need", arXiv 1706.03762, section 3.2.
    """

    def __init__(self, embed_dim: int, num_heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim={embed_dim} does not divide into {num_heads} heads")
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            x: ``(N, L, C)``.
            valid: ``(N, L)`` boolean, the tokens that may be attended to; default: all.
        """
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (N, heads, L, head_dim)
        mask = None if valid is None else valid[:, None, None, :]
        return self.proj(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))
