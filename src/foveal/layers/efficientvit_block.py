"""The block of EfficientViT's attention stages (arXiv 2205.14756, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .conv import Activation, InvertedResidual
from .drop_path import DropPath
from .linear_attention import MultiScaleLinearAttention


class EfficientViTBlock(nn.Module):
    """Linear attention with a residual connection, then an inverted residual; ``(B, C, H, W)`` keeps its shape."""

    def __init__(
        self,
        channels: int,
        *,
        head_dim: int,
        expand_ratio: float = 4,
        scales: Sequence[int] = (5,),
        attention_eps: float = 1e-15,
        global_attention: bool = True,
        act: Activation = nn.Hardswish,
        norm_eps: float = 1e-5,
        norm: bool = True,
    ) -> None:
        super().__init__()
        self.attention = MultiScaleLinearAttention(
            channels,
            head_dim=head_dim,
            scales=scales,
            eps=attention_eps,
            norm_eps=norm_eps,
            norm=norm,
            global_attention=global_attention,
        )
        self.drop_path = DropPath()
        self.local = InvertedResidual(
            channels, channels, expand_ratio=expand_ratio, act=act, norm_eps=norm_eps, fewer_norm=True, norm=norm
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.local(x + self.drop_path(self.attention(x)))
