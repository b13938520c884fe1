"""The Mamba mixer of MambaVision (arXiv 2407.08083, section 3.2).

Two details that look like mistakes follow the authors' released weights, which were trained with them: the bias of the
step size is added twice, and the depthwise convolutions have no bias.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conv import widened
from .scan import selective_scan


class MambaMixer(nn.Module):
    """Selective scan over half of the channels, concatenated with the other half; keeps ``(N, L, C)``.

    Both halves pass through a depthwise convolution and SiLU first.

    Args:
        embed_dim: C, even.
        state_dim: states per channel of the scan.

    Source: arXiv 2407.08083, section 3.2 ("MambaVision mixer"); the scan is Mamba's, arXiv 2312.00752.

    Attributes:
        undecayed: last parts of the names of parameters without weight decay.
    """

    undecayed = ("A_log", "D")

    def __init__(self, embed_dim: int, state_dim: int = 8) -> None:
        super().__init__()
        inner, self.state_dim, self.step_rank = embed_dim // 2, state_dim, -(-embed_dim // 16)
        self.in_proj = nn.Linear(embed_dim, embed_dim, bias=False)
        self.conv1d_x = nn.Conv1d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.conv1d_z = nn.Conv1d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.x_proj = nn.Linear(inner, self.step_rank + 2 * state_dim, bias=False)
        self.dt_proj = nn.Linear(self.step_rank, inner)
        self.A_log = nn.Parameter(torch.arange(1, state_dim + 1).float().log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=False)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Mix the tokens. Those that are not ``valid``, ``(N, L)``, must be the last and do not affect the others."""
        if valid is not None:
            x = x * valid[..., None].to(x.dtype)  # the convolutions then read zeros, as after the last token
        u, z = self.in_proj(x).transpose(1, 2).chunk(2, dim=1)  # (N, C / 2, L) each
        u, z = F.silu(self.conv1d_x(u)), F.silu(self.conv1d_z(z))
        step, b, c = self.x_proj(u.transpose(1, 2)).split([self.step_rank, self.state_dim, self.state_dim], dim=-1)
        y = selective_scan(
            u,
            self.dt_proj(step).transpose(1, 2),
            -widened(self.A_log).exp(),
            b.transpose(1, 2),
            c.transpose(1, 2),
            self.D,
            delta_bias=self.dt_proj.bias,  # added a second time, as in the training of the weights
            delta_softplus=True,
        )
        return self.out_proj(torch.cat([cast(Tensor, y), z], dim=1).transpose(1, 2))
