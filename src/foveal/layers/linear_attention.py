"""Attention in linear time.

``linear_attention`` computes the formula of Katharopoulos et al. (arXiv 2006.16236): ``phi(q) (phi(k)^T v)`` divided by
``phi(q) sum phi(k)``. ``MultiScaleLinearAttention`` is EfficientViT's module: ReLU features, and further scales that
depthwise convolutions aggregate (arXiv 2205.14756, section 3.1; ``LiteMLA`` in the authors' code).
``LinearSelfAttention`` is the plain multi-head layer. In ``CascadedLinearAttention`` each head has its own split of the
channels and receives the result of the head before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any, Literal, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError, InputError, nearest
from .conv import ConvNormAct
from .leaf import leaf
from .packed import can_run
from .relu_attention import attend_channels_last
from .relu_attention_operator import fused_relu_attention, has_fused_kernel

#: Keys and epsilon are scaled by the same power of two, which cancels exactly in the quotient. It is for runtimes that
#: convert an exported float32 graph to float16: it keeps the sums over all positions below 65504 (without it,
#: EfficientViT-B0 exceeds that at 2048x4096). A constant needs no arithmetic on symbolic sizes.
_SCALE = 2.0**-8

FeatureMap = Callable[[Tensor], Tensor]


def elu_plus_one(x: Tensor) -> Tensor:
    """The positive feature map ``elu(x) + 1`` of arXiv 2006.16236."""
    return F.elu(x) + 1


def squared_relu(x: Tensor) -> Tensor:
    """The feature map ``relu(x)^2``, which is sharper than ReLU (the activation of Primer, arXiv 2109.08668)."""
    return F.relu(x).square()


#: Elementwise feature maps by name. "softmax" is not elementwise and is computed apart, see :func:`linear_attention`.
FEATURE_MAPS: dict[str, FeatureMap] = {"elu1": elu_plus_one, "relu": F.relu, "squared_relu": squared_relu}


class LinearAttentionState(NamedTuple):
    """Sums over all keys and values so far, from which a causal sequence continues. Their size is constant.

    The sums are in float32 (float64 for float64 inputs). Without ``peak`` they are scaled by 2^-8.
    """

    context: Tensor  #: sum of ``phi(k) v^T``, ``(..., D, E)``
    norm: Tensor  #: sum of ``phi(k)``, ``(..., D)``
    #: Only for softmax features: largest key of each channel, ``(..., D)``; then ``phi(k)`` is ``e^(k - peak)``.
    peak: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the state."""
        return sum(part.numel() * part.element_size() for part in self if part is not None)


@overload
def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, *, feature_map: str | FeatureMap = ..., causal: bool = ..., eps: float = ...,
    state: None = ..., return_state: Literal[False] = ..., chunk_size: int = ...,
) -> Tensor: ...  # fmt: skip
@overload
def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, *, feature_map: str | FeatureMap = ..., causal: bool = ..., eps: float = ...,
    state: LinearAttentionState, return_state: bool = ..., chunk_size: int = ...,
) -> tuple[Tensor, LinearAttentionState]: ...  # fmt: skip
@overload
def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, *, feature_map: str | FeatureMap = ..., causal: bool = ..., eps: float = ...,
    state: LinearAttentionState | None = ..., return_state: Literal[True], chunk_size: int = ...,
) -> tuple[Tensor, LinearAttentionState]: ...  # fmt: skip
@leaf
def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    feature_map: str | FeatureMap = F.relu,
    causal: bool = False,
    eps: float = 1e-15,
    state: LinearAttentionState | None = None,
    return_state: bool = False,
    chunk_size: int = 64,
) -> Tensor | tuple[Tensor, LinearAttentionState]:
    """Attend in O(N): ``phi(q) @ (phi(k)^T @ v) / (phi(q) @ sum(phi(k)) + eps)``.

    The division is essential: without it the output grows with the number of keys.

    Args:
        q: queries, ``(..., N, D)``. Transposed views of channel-major maps are fine; they are not copied.
        k: keys, ``(..., M, D)``.
        v: values, ``(..., M, E)``.
        feature_map: non-negative feature map phi of queries and keys: a name from :data:`FEATURE_MAPS`, any function of
            one tensor, or "softmax". With "softmax", queries pass through a softmax over their D channels, and each
            channel of the keys through a softmax over the positions (arXiv 1812.01243, section 3.2); this is a
            normalisation, so ``eps`` is not used.
        causal: whether a query attends only to keys up to its own position. The last query belongs to the last key, and
            N is at most M.
        eps: epsilon that is added to the normaliser as in the formula above, before any internal scaling.
        state: the state after the earlier pieces of the sequence; their keys come before those of this piece.
        return_state: whether to return the state too. It is always returned if ``state`` is given.
        chunk_size: positions per chunk of causal attention, which computes a square matrix of weights in each chunk. It
            affects speed and memory, not the result.

    Returns:
        ``(..., N, E)`` in the dtype of ``v``, or a pair of that and the state after this piece. A query whose features
        are all zero gives 0 (with ``eps=0``: NaN).

    Raises:
        InputError: shapes that do not fit together.
        ConfigError: an unknown feature map, or a ``chunk_size`` below 1.

    Autocast is off inside, and 16-bit inputs are converted to float32 first. In 16 bits the sums over M would overflow,
    ``eps`` would underflow, and the gradient of a query whose features are all zero, about ``1 / eps``, would be
    infinite.
    """
    _check_shapes(q, k, v, causal, state)
    if chunk_size < 1:
        raise ConfigError(f"chunk_size={chunk_size}: give 1 or more")
    device = q.device.type  # the meta device, on which costs are counted, has no autocast to switch off
    with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
        wide = torch.promote_types(v.dtype, torch.float32)
        q, k, values = q.to(wide), k.to(wide), v.to(wide)
        if feature_map == "softmax":
            out, new_state = _attend_softmax(q, k, values, causal, state)
        else:
            phi = _feature_map(feature_map)
            if state is not None and state.peak is not None:
                raise InputError("linear attention: the state was made with feature_map='softmax': give the same")
            q, k = phi(q), phi(k) * _SCALE
            if causal:
                out, new_state = _attend_causal(q, k, values, eps * _SCALE, state, chunk_size)
            else:
                out, new_state = _attend(q, k, values, eps * _SCALE, state)
    out = out.to(v.dtype)
    return (out, new_state) if return_state or state is not None else out


def _feature_map(feature_map: str | FeatureMap) -> FeatureMap:
    if not isinstance(feature_map, str):
        return feature_map
    if feature_map not in FEATURE_MAPS:
        raise ConfigError(f"unknown feature map {feature_map!r}{nearest(feature_map, (*FEATURE_MAPS, 'softmax'))}")
    return FEATURE_MAPS[feature_map]


def _check_shapes(q: Tensor, k: Tensor, v: Tensor, causal: bool, state: LinearAttentionState | None) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if min(q.ndim, k.ndim, v.ndim) < 2 or q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        expected = "(..., N, D), (..., M, D), (..., M, E)"
        raise InputError(f"linear attention: {shapes} do not fit together; expected {expected}")
    if causal and q.shape[-2] > k.shape[-2]:
        raise InputError(f"causal linear attention: {shapes} have more queries than keys; give at least as many keys")
    if state is not None and state.context.shape[-2:] != (k.shape[-1], v.shape[-1]):
        sizes = f"(D, E) = {tuple(state.context.shape[-2:])}; expected ({k.shape[-1]}, {v.shape[-1]})"
        raise InputError(f"linear attention: the state has {sizes} as in k and v")


def _attend(
    q: Tensor, k: Tensor, v: Tensor, eps: float, state: LinearAttentionState | None
) -> tuple[Tensor, LinearAttentionState]:
    """Attention of all queries to all keys, given their features."""
    context = k.transpose(-2, -1) @ v  # (..., D, E)
    norm = k.sum(-2, keepdim=True)  # (..., 1, D)
    if state is not None:
        context, norm = context + state.context, norm + state.norm.unsqueeze(-2)
    out = q @ context / (q @ norm.transpose(-2, -1) + eps)
    return out, LinearAttentionState(context, norm.squeeze(-2))


def _attend_causal(
    q: Tensor, k: Tensor, v: Tensor, eps: float, state: LinearAttentionState | None, chunk_size: int
) -> tuple[Tensor, LinearAttentionState]:
    """Causal attention, given the features, in chunks: a masked square inside each chunk, running sums between them."""
    n, m = q.shape[-2], k.shape[-2]
    if m > n:  # keys before the first query
        before = k[..., : m - n, :]
        context, norm = before.transpose(-2, -1) @ v[..., : m - n, :], before.sum(-2)
        if state is not None:
            context, norm = context + state.context, norm + state.norm
        state, k, v = LinearAttentionState(context, norm), k[..., m - n :, :], v[..., m - n :, :]
    side = max(1, min(chunk_size, n))
    chunks = max(1, -(-n // side))  # one of padding for an empty piece
    pad = (0, 0, 0, chunks * side - n)  # zero keys add nothing, and the outputs of these queries are cut off below
    q, k, v = (F.pad(x, pad).unflatten(-2, (chunks, side)) for x in (q, k, v))  # (..., chunks, side, D)
    contexts, norms = k.transpose(-2, -1) @ v, k.sum(-2)  # per chunk: (..., chunks, D, E) and (..., chunks, D)
    if state is not None:
        contexts = torch.cat([state.context.unsqueeze(-3).expand_as(contexts[..., :1, :, :]), contexts], dim=-3)
        norms = torch.cat([state.norm.unsqueeze(-2).expand_as(norms[..., :1, :]), norms], dim=-2)
    else:
        contexts, norms = F.pad(contexts, (0, 0, 0, 0, 1, 0)), F.pad(norms, (0, 0, 1, 0))
    contexts, norms = contexts.cumsum(-3), norms.cumsum(-2)  # before each chunk, and after the last one
    weights = (q @ k.transpose(-2, -1)).tril()  # (..., chunks, side, side)
    total = weights.sum(-1, keepdim=True) + q @ norms[..., :-1, :].unsqueeze(-1)
    out = (weights @ v + q @ contexts[..., :-1, :, :]) / (total + eps)
    return out.flatten(-3, -2)[..., :n, :], LinearAttentionState(contexts[..., -1, :, :], norms[..., -1, :])


#: Positions that causal attention with softmax features computes at once, as a cube of query, key and channel.
_CUBE = 16


def _attend_softmax(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, state: LinearAttentionState | None
) -> tuple[Tensor, LinearAttentionState]:
    """Attention with keys normalised over positions. All sums are relative to the largest key of each channel so far.

    The causal form computes the weight of each query-key pair in each channel, because separate factors for query and
    key would overflow.
    """
    q, n, m = q.softmax(-1), q.shape[-2], k.shape[-2]
    if state is None:
        shape = v.shape[:-2]
        context, norm = v.new_zeros(*shape, k.shape[-1], v.shape[-1]), v.new_zeros(*shape, k.shape[-1])
        peak = v.new_full((*shape, k.shape[-1]), -math.inf)
    else:
        context, norm, peak = state
        if peak is None:
            raise InputError(
                "linear attention: the state was made with another feature map than 'softmax': give the same"
            )
    shared = m - n if causal else m  # keys that every query attends to
    if shared:
        context, norm, peak = _add_keys(context, norm, peak, k[..., :shared, :], v[..., :shared, :])
    if not causal:
        return q @ (context / norm.unsqueeze(-1)), LinearAttentionState(context, norm, peak)
    outs: list[Tensor] = []
    for start in range(0, n, _CUBE):
        piece = slice(start, min(start + _CUBE, n))
        q_, k_, v_ = q[..., piece, :], k[..., shared:, :][..., piece, :], v[..., shared:, :][..., piece, :]
        peaks = torch.maximum(k_.cummax(-2).values, peak.unsqueeze(-2))  # (..., t, D), at each query
        length = q_.shape[-2]
        mask = torch.ones(length, length, dtype=torch.bool, device=q.device).tril().unsqueeze(-1)  # (t, s, 1)
        exponents = (k_.unsqueeze(-3) - peaks.unsqueeze(-2)).masked_fill(~mask, -math.inf)
        cube = exponents.exp()  # (..., t, s, D)
        earlier = (peak.unsqueeze(-2) - peaks).exp()  # (..., t, D)
        scaled = q_ / (cube.sum(-2) + earlier * norm.unsqueeze(-2))  # (..., t, D)
        outs.append((scaled.unsqueeze(-2) * cube).sum(-1) @ v_ + (scaled * earlier) @ context)
        context, norm, peak = _add_keys(context, norm, peak, k_, v_)
    out = torch.cat(outs, dim=-2) if outs else q @ context  # of an empty piece
    return out, LinearAttentionState(context, norm, peak)


def _add_keys(context: Tensor, norm: Tensor, peak: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Add keys and values to sums that are relative to ``peak``; return the sums and their new ``peak``."""
    new_peak = torch.maximum(peak, k.amax(-2))
    weights, rescale = (k - new_peak.unsqueeze(-2)).exp(), (peak - new_peak).exp()
    context = context * rescale.unsqueeze(-1) + weights.transpose(-2, -1) @ v
    return context, norm * rescale + weights.sum(-2), new_peak


class LinearSelfAttention(nn.Module):
    """Multi-head linear self-attention over the tokens of ``(B, N, C)``, in O(N); the shape is kept.

    Its layers are named ``linear_qkv`` and ``proj``, so that the keys of a checkpoint distinguish it from softmax
    attention of the same shapes.

    Args:
        embed_dim: channels of a token, a multiple of ``num_heads``.
        num_heads: heads.
        feature_map: feature map, see :func:`linear_attention`.
        causal: whether a token attends only to itself and the tokens before it.
        eps: epsilon of the normaliser.

    Raises:
        ConfigError: ``num_heads`` does not divide ``embed_dim``.

    Source: arXiv 2006.16236, section 3.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        feature_map: str | FeatureMap = "elu1",
        causal: bool = False,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads:
            raise ConfigError(f"embed_dim={embed_dim} does not divide into {num_heads} heads: give a divisor")
        self.num_heads, self.feature_map, self.causal, self.eps = num_heads, feature_map, causal, eps
        self.linear_qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(linear_attention(*self._qkv(x), **self._settings()).transpose(1, 2).flatten(2))

    def step(self, x: Tensor, state: LinearAttentionState | None = None) -> tuple[Tensor, LinearAttentionState]:
        """Compute the next piece of a sequence, ``(B, N, C)``, which attends to the pieces before it through ``state``.

        Returns:
            The output for the piece, which for a causal layer equals that of the whole sequence, and the new state.
        """
        out, state = linear_attention(*self._qkv(x), **self._settings(), state=state, return_state=True)
        return self.proj(out.transpose(1, 2).flatten(2)), state

    def _qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.linear_qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, N, D)
        return q, k, v

    def _settings(self) -> dict[str, Any]:
        return {"feature_map": self.feature_map, "causal": self.causal, "eps": self.eps}


class MultiScaleLinearAttention(nn.Module):
    """Multi-scale ReLU linear attention on maps: ``(B, in_chans, H, W) -> (B, out_chans, H, W)``.

    A 1x1 convolution computes q, k and v. Every further scale aggregates them with a depthwise convolution and a
    grouped 1x1 convolution. All scales attend globally. A 1x1 convolution with batch norm merges them.

    Args:
        in_chans: channels of the input, a multiple of ``head_dim``.
        out_chans: channels of the output, default ``in_chans``.
        head_dim: channels per head.
        scales: kernel sizes (odd) of the branches in addition to the identity; ``()`` is the paper's single-scale
            ablation.
        eps: epsilon of the normaliser (1e-15 in the official code, 1e-5 in timm).
        norm_eps: epsilon of the batch norm at the output.
        norm: ``False``: the output has a bias instead of a batch norm.
        global_attention: ``False`` is the paper's ablation without attention: each position keeps its own values.
            ``qkv`` then computes the values alone. Weights of the module with attention load after
            :func:`~.attention_rows.select_values`.

    Raises:
        ConfigError: an even or non-positive kernel size, or fewer channels than one head has.
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
            raise ConfigError(f"scales={tuple(scales)}: give kernel sizes that are odd and positive, or () for none")
        if in_chans < head_dim:
            raise ConfigError(f"{in_chans} channels: linear attention with heads of {head_dim} needs at least as many")
        self.head_dim, self.eps, self.global_attention = head_dim, eps, global_attention
        num_heads = in_chans // head_dim
        inner = num_heads * head_dim
        parts = 3 if global_attention else 1  # queries, keys and values; or values alone
        width = parts * inner
        self.qkv = nn.Conv2d(in_chans, width, 1, bias=False)
        self.aggregate = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, size, padding=size // 2, groups=width, bias=False),
                nn.Conv2d(width, width, 1, groups=parts * num_heads, bias=False),
            )
            for size in scales
        )
        self.project = ConvNormAct(inner * (1 + len(scales)), out_chans or in_chans, 1, norm=norm, norm_eps=norm_eps)
        self.channels_last = False  # set by foveal.optimize

    def _all_scales(self, x: Tensor) -> Tensor:
        """Compute q, k and v of all heads and branches one after the other, ``(B, branches * heads * 3 D, H, W)``."""
        qkv = self.qkv(x)
        return torch.cat([qkv, *(branch(qkv) for branch in self.aggregate)], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        if not self.global_attention:
            return self.project(self._all_scales(x))
        b, _, h, w = x.shape
        if self.channels_last and can_run(x, self.qkv.weight):
            return self.project(attend_channels_last(self.qkv(x), self.aggregate, self.head_dim, self.eps))
        heads = self._all_scales(x).reshape(b, -1, 3 * self.head_dim, h * w)
        return self.project(_attend_channel_major(heads, self.head_dim, self.eps).reshape(b, -1, h, w))


@leaf
def _attend_channel_major(heads: Tensor, head_dim: int, eps: float) -> Tensor:
    """Attend with q, k and v one after the other in each head: ``(B, H, 3 D, N) -> (B, H, D, N)``."""
    if has_fused_kernel(heads):
        return fused_relu_attention(heads, eps)
    q, k, v = heads.transpose(-2, -1).split(head_dim, dim=-1)
    return linear_attention(q, k, v, eps=eps).transpose(-2, -1)


class CascadedLinearAttention(nn.Module):
    """Linear attention where each head has its own split of the channels: ``(B, N, C) -> (B, N, C)`` in O(N).

    Head i projects only channel split i to q, k and v, and attends with ``elu(x) + 1`` features. A linear layer mixes
    the concatenated heads. ``cascade`` selects how a head passes its output to the next head:

    - "output": it is added to the output of the next head, ``out_i + out_{i-1}`` (Edifice's documentation);
    - "input": it is added to the input of the next head, so that later heads build on earlier ones (Cascaded Group
      Attention, arXiv 2305.07027, section 3.2).

    Args:
        dim: channels, a multiple of ``num_heads``.
        num_heads: heads, and splits of the channels.
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
            raise ConfigError(f"num_heads={num_heads} does not divide {dim} channels: give a divisor")
        if cascade not in ("output", "input"):
            raise ConfigError(f"unknown cascade {cascade!r}{nearest(str(cascade), ('output', 'input'))}")
        self.cascade, self.eps = cascade, eps
        head_dim = dim // num_heads
        self.qkv = nn.ModuleList(nn.Linear(head_dim, 3 * head_dim) for _ in range(num_heads))
        self.project = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        outs: list[Tensor] = []
        splits = x.chunk(len(self.qkv), dim=-1)
        for i, qkv in enumerate(self.qkv):
            split = splits[i] + outs[-1] if self.cascade == "input" and outs else splits[i]
            q, k, v = qkv(split).chunk(3, dim=-1)
            outs.append(linear_attention(q, k, v, feature_map="elu1", eps=self.eps))
        if self.cascade == "output":
            outs = [outs[0], *(out + previous for previous, out in pairwise(outs))]
        return self.project(torch.cat(outs, dim=-1))
