"""The feed-forward part of a transformer block."""

from __future__ import annotations

from torch import Tensor, nn

from .conv import Activation


class Mlp(nn.Module):
    """Two linear layers with an activation between them, over the last dimension; the shape is kept.

    Args:
        embed_dim: channels of a token.
        hidden_dim: channels between the layers.
        act: activation class; the default is the exact (erf) GELU.
    """

    def __init__(self, embed_dim: int, hidden_dim: int, *, act: Activation = nn.GELU) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.act = act() if act is not None else nn.Identity()
        self.fc2 = nn.Linear(hidden_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))
