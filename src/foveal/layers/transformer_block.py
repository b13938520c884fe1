"""The block of vision transformers (arXiv 2010.11929) on maps."""

from __future__ import annotations

from torch import Tensor, nn

from .drop_path import DropPath
from .mlp import Mlp


class TransformerBlock(nn.Module):
    """Pre-norm attention and feed-forward network, each with a residual connection: keeps ``(B, C, H, W)``.

    Args:
        embed_dim: C.
        attention: keeps tokens ``(B, H * W, C)``.
        drop_path: rate of :class:`DropPath` on both residual branches.
    """

    def __init__(self, embed_dim: int, attention: nn.Module, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(embed_dim), nn.LayerNorm(embed_dim)
        self.attention = attention
        self.mlp = Mlp(embed_dim, 4 * embed_dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.drop_path(self.attention(self.norm1(tokens)))
        tokens = tokens + self.drop_path(self.mlp(self.norm2(tokens)))
        return tokens.transpose(1, 2).reshape(x.shape)
