"""Linformer attention: attention to a fixed number of mixtures of the tokens (arXiv 2006.04768)."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import ConfigError, InputError, nearest
from .dot_product_attention import attention, check_heads
from .leaf import leaf

#: Which parts share a projection (arXiv 2006.04768, section 4). "none": each head has one for keys and one for values.
#: "headwise": all heads share them. "key-value": keys and values share one, too. "layerwise": all layers share one.
Sharing = Literal["none", "headwise", "key-value", "layerwise"]


class LinformerAttention(nn.Module):
    """Attention to ``proj_dim`` mixtures of the tokens instead of all tokens: ``(B, N, C) -> (B, N, C)`` in O(N).

    It computes ``softmax(Q (E K)^T / sqrt(D)) (F V)`` with learned projections ``E`` and ``F`` from ``max_length``
    positions to ``proj_dim``. They are the parameters ``proj_k`` and ``proj_v``, ``(max_length, proj_dim)``, or
    ``(num_kv_heads, max_length, proj_dim)`` for ``sharing="none"``. A shorter input uses their first rows. There is no
    causal form, because every mixture contains all tokens.

    State dicts of the ``linformer`` package on PyPI (``to_q``, ``to_k``, ``to_v``, ``to_out``) load too.

    Args:
        embed_dim: channels of a token.
        num_heads: heads of queries.
        max_length: largest number of tokens.
        proj_dim: number of mixtures, ``k`` in the paper.
        sharing: what shares a projection: "none", "headwise" (all heads, as in the ``linformer`` package), "key-value"
            (keys and values too: ``E = F``), "layerwise" (all layers too: this module has no projection, and
            ``forward`` takes it as an argument).
        num_kv_heads: heads of keys and values, default ``num_heads``; 1 is the package's ``one_kv_head``.
        head_dim: channels of a head, default ``embed_dim / num_heads``.
        values_are_keys: whether the projected keys are also the values: the package's ``share_kv``, which goes beyond
            the paper's sharing. Then there is one projection and no ``value`` layer.
        qkv_bias: whether queries, keys and values have a bias.
        dropout: rate at which attention weights are dropped in training.

    Raises:
        ConfigError: an unknown ``sharing``, or heads that do not divide the channels or one another.

    Source: arXiv 2006.04768, sections 4 and 5.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        max_length: int,
        proj_dim: int = 256,
        sharing: Sharing = "headwise",
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        values_are_keys: bool = False,
        qkv_bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        check_heads(embed_dim, num_heads, num_kv_heads, head_dim)
        if sharing not in get_args(Sharing):
            raise ConfigError(f"unknown sharing {sharing!r}{nearest(str(sharing), get_args(Sharing))}")
        if min(max_length, proj_dim) < 1:
            raise ConfigError(f"max_length={max_length}, proj_dim={proj_dim}: give 1 or more")
        self.head_dim = head_dim = embed_dim // num_heads if head_dim is None else head_dim
        self.max_length, self.sharing, self.dropout = max_length, sharing, dropout
        inner = num_kv_heads * head_dim
        self.query = nn.Linear(embed_dim, num_heads * head_dim, bias=qkv_bias)
        self.key = nn.Linear(embed_dim, inner, bias=qkv_bias)
        self.value = None if values_are_keys else nn.Linear(embed_dim, inner, bias=qkv_bias)
        self.proj = nn.Linear(num_heads * head_dim, embed_dim)
        shape = (*((num_kv_heads,) if sharing == "none" else ()), max_length, proj_dim)
        separate = sharing in ("none", "headwise") and not values_are_keys
        self.proj_k = None if sharing == "layerwise" else linformer_projection(*shape)
        self.proj_v = linformer_projection(*shape) if separate else None
        self.register_load_state_dict_pre_hook(_rename_linformer)

    def forward(self, x: Tensor, valid: Tensor | None = None, projection: Tensor | None = None) -> Tensor:
        """Attend to the mixtures of the tokens.

        Args:
            x: ``(B, N, C)`` with ``N <= max_length``.
            valid: ``(B, N)`` boolean, True for the tokens that enter the mixtures; default: all.
            projection: ``(max_length, proj_dim)``, the projection of all layers; only for ``sharing="layerwise"``.

        Raises:
            InputError: more tokens than ``max_length``, shapes that do not fit, or a projection that is missing or not
                used.
        """
        if (projection is None) == (self.sharing == "layerwise"):
            raise InputError(f"sharing={self.sharing!r}: pass a projection with 'layerwise', and only then")
        _check_input(x, valid, self.query.in_features, self.max_length)
        proj_k = self.proj_k if projection is None else projection
        proj_v = proj_k if self.proj_v is None else self.proj_v
        assert proj_k is not None
        assert proj_v is not None
        q = self._split_heads(self.query(x))
        k = self._project(self.key(x), proj_k, valid)
        v = k if self.value is None else self._project(self.value(x), proj_v, valid)
        out = attention(q, k, v, dropout=self.dropout if self.training else 0.0)
        return self.proj(out.transpose(1, 2).flatten(2))

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, heads, N, D)

    def _project(self, x: Tensor, projection: Tensor, valid: Tensor | None) -> Tensor:
        """Mix the tokens of keys or values: ``(B, N, heads * D) -> (B, heads, proj_dim, D)``."""
        if valid is not None:
            x = x * valid.unsqueeze(-1).to(x.dtype)
        return projection[..., : x.shape[1], :].transpose(-2, -1) @ self._split_heads(x)


@leaf
def _check_input(x: Tensor, valid: Tensor | None, channels: int, max_length: int) -> None:
    if x.ndim != 3 or x.shape[-1] != channels:
        raise InputError(f"attention: x has shape {tuple(x.shape)}; expected (B, N, {channels})")
    if x.shape[1] > max_length:
        raise InputError(f"{x.shape[1]} tokens: this Linformer was built for at most {max_length} (max_length)")
    if valid is not None and valid.shape != x.shape[:2]:
        expected = f"{tuple(x.shape[:2])}, one entry per token"
        raise InputError(f"attention: valid has shape {tuple(valid.shape)}; expected {expected}")


def linformer_projection(*shape: int) -> nn.Parameter:
    """Make a projection ``(..., max_length, proj_dim)`` with uniform values between -/+ ``1 / sqrt(proj_dim)``."""
    bound = shape[-1] ** -0.5
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


_LINFORMER_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out": "proj"}


def _rename_linformer(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename the keys of the ``linformer`` package in a state dict that is being loaded, in place."""
    for old, new in _LINFORMER_NAMES.items():
        for kind in ("weight", "bias"):
            if (key := f"{prefix}{old}.{kind}") in state:
                state[f"{prefix}{new}.{kind}"] = state.pop(key)
