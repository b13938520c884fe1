"""Attention in linear time.

``linear_attention`` is the formula of Katharopoulos et al. (arXiv 2006.16236): ``phi(q) (phi(k)^T v)`` over
``phi(q) sum phi(k)``. ``MultiScaleLinearAttention`` is EfficientViT's use of it with ReLU features and depthwise
aggregated extra scales (arXiv 2205.14756, section 3.1; ``LiteMLA`` in the authors' code).
``CascadedLinearAttention`` gives each head a channel split of its own, and the result of the head before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError, nearest
from .conv import ConvNormAct

#: Keys and epsilon shrink by the same power of two, which cancels to the last bit. It is for runtimes that turn an
#: exported float32 graph into float16 by themselves: their sums over all positions then stay below 65504 (without it
#: EfficientViT-B0 passes that at 2048x4096), and a constant needs no arithmetic on symbolic sizes.
_SHRINK = 2.0**-8


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    feature_map: Callable[[Tensor], Tensor] = F.relu,
    eps: float = 1e-15,
) -> Tensor:
    """Attend in O(N): ``phi(q) @ (phi(k)^T @ v) / (phi(q) @ sum(phi(k)) + eps)``.

    Args:
        q: queries, ``(..., N, D)``. Transposed views of channel-major maps are fine, nothing is copied.
        k: keys, ``(..., M, D)``.
        v: values, ``(..., M, E)``.
        feature_map: non-negative map of queries and keys.
        eps: added to the normaliser, in units of the unscaled sum.

    Returns:
        ``(..., N, E)`` in the dtype of ``v``. A query whose features are all zero gives 0.

    Autocast does not reach inside, and 16-bit inputs are widened to float32 first: their sums over M overflow, ``eps``
    underflows, and the gradient of a query without features, some ``1 / eps``, becomes infinite.
    """
    device = q.device.type  # "meta", where costs are counted, has no autocast to switch off
    with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
        wide = torch.promote_types(v.dtype, torch.float32)
        q, k, values = feature_map(q.to(wide)), feature_map(k.to(wide)) * _SHRINK, v.to(wide)
        context = k.transpose(-2, -1) @ values  # (..., D, E)
        norm = q @ k.sum(-2, keepdim=True).transpose(-2, -1)  # (..., N, 1)
        return (q @ context / (norm + eps * _SHRINK)).to(v.dtype)


class MultiScaleLinearAttention(nn.Module):
    """Multi-scale ReLU linear attention on maps: ``(B, in_chans, H, W) -> (B, out_chans, H, W)``.

    One 1x1 convolution makes q, k and v; every extra scale aggregates them with a depthwise convolution and a
    grouped 1x1 one; all scales attend globally; a 1x1 convolution with batch norm merges them.

    Args:
        in_chans: channels of the input, a multiple of ``head_dim``.
        out_chans: channels of the output, default ``in_chans``.
        head_dim: channels per head.
        scales: kernel sizes (odd) of the branches beyond the identity; ``()`` is the paper's single-scale ablation.
        eps: epsilon of the normaliser (1e-15 in the official code, 1e-5 in timm).
        norm_eps: epsilon of the output's batch norm.
        norm: ``False``: a bias in its place.
        global_attention: ``False`` is the paper's ablation without attention: each position keeps its own values.

    Raises:
        ConfigError: an even or non-positive kernel size.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int | None = None,
        *,
        head_dim: int = 16,
        scales: Sequence[int] = (5,),
        eps: float = 1e-15,
        norm_eps: float = 1e-5,
        norm: bool = True,
        global_attention: bool = True,
    ) -> None:
        super().__init__()
        if any(size < 1 or size % 2 == 0 for size in scales):
            raise ConfigError(f"scales={tuple(scales)}: kernel sizes must be odd and positive")
        self.head_dim, self.eps, self.global_attention = head_dim, eps, global_attention
        num_heads = in_chans // head_dim
        inner = num_heads * head_dim
        self.qkv = nn.Conv2d(in_chans, 3 * inner, 1, bias=False)
        self.aggregate = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(3 * inner, 3 * inner, size, padding=size // 2, groups=3 * inner, bias=False),
                nn.Conv2d(3 * inner, 3 * inner, 1, groups=3 * num_heads, bias=False),
            )
            for size in scales
        )
        self.project = ConvNormAct(inner * (1 + len(scales)), out_chans or in_chans, 1, norm=norm, norm_eps=norm_eps)
        self.elsewhere: tuple[Tensor, Tensor] | None = None  # keys and values that queries see instead of x's own

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of all heads and branches, ``(B, heads * branches, H * W, head_dim)`` each."""
        b, _, h, w = x.shape
        qkv = self.qkv(x)
        qkv = torch.cat([qkv, *(branch(qkv) for branch in self.aggregate)], dim=1)
        # (B, heads * branches, 3D, N), then token-major views: channels stay contiguous.
        heads = qkv.reshape(b, -1, 3 * self.head_dim, h * w)
        q, k, v = heads.transpose(-2, -1).split(self.head_dim, dim=-1)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = self.heads(x)
        if self.elsewhere is not None:
            k, v = self.elsewhere
        out = linear_attention(q, k, v, eps=self.eps) if self.global_attention else v
        return self.project(out.transpose(-2, -1).reshape(b, -1, h, w))


def elu_plus_one(x: Tensor) -> Tensor:
    """The positive feature map ``elu(x) + 1`` of arXiv 2006.16236."""
    return F.elu(x) + 1


class CascadedLinearAttention(nn.Module):
    """Linear attention whose heads each see their own channels: ``(B, N, C) -> (B, N, C)`` in O(N).

    Head i projects channel split i alone to q, k and v and attends with ``elu(x) + 1`` features; all heads are
    concatenated and mixed by a linear layer. What passes from head to head is ``cascade``:

    - "output": each head's output is added to the next one's, ``out_i + out_{i-1}`` (Edifice's documentation);
    - "input": each head's output is added to the next one's input (Cascaded Group Attention, arXiv 2305.07027,
      section 3.2), so that later heads build on earlier ones.

    Args:
        dim: channels, a multiple of ``num_heads``.
        num_heads: heads, hence channel splits.
        cascade: "output" or "input".
        eps: epsilon of the normaliser.

    Raises:
        ConfigError: ``num_heads`` does not divide ``dim``, or an unknown ``cascade``.
    """

    def __init__(
        self, dim: int, num_heads: int, *, cascade: Literal["output", "input"] = "output", eps: float = 1e-8
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ConfigError(f"num_heads={num_heads} does not divide {dim} channels")
        if cascade not in ("output", "input"):
            raise ConfigError(f"unknown cascade {cascade!r}{nearest(str(cascade), ('output', 'input'))}")
        self.cascade, self.eps = cascade, eps
        head_dim = dim // num_heads
        self.qkv = nn.ModuleList(nn.Linear(head_dim, 3 * head_dim) for _ in range(num_heads))
        self.project = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        outs: list[Tensor] = []
        for split, qkv in zip(x.chunk(len(self.qkv), dim=-1), self.qkv, strict=True):
            if self.cascade == "input" and outs:
                split = split + outs[-1]
            q, k, v = qkv(split).chunk(3, dim=-1)
            outs.append(linear_attention(q, k, v, feature_map=elu_plus_one, eps=self.eps))
        if self.cascade == "output":
            outs = [outs[0], *(out + before for before, out in pairwise(outs))]
        return self.project(torch.cat(outs, dim=-1))
