"""Linformer's attention (arXiv 2006.04768)."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import ConfigError, InputError, nearest
from .dot_product_attention import attention, check_heads

#: How many projections a Linformer has (arXiv 2006.04768, section 4): one per head, keys and values apart; one for all
#: heads; one for keys and values too; one for all layers.
Sharing = Literal["none", "headwise", "key-value", "layerwise"]


class LinformerAttention(nn.Module):
    """Attention to ``proj_dim`` mixtures of the tokens instead of all: ``(B, N, C) -> (B, N, C)`` in O(N).

    ``softmax(Q (E K)^T / sqrt(D)) (F V)`` with learned ``E`` and ``F`` from ``max_length`` positions to ``proj_dim``,
    kept as ``proj_k`` and ``proj_v`` of ``(max_length, proj_dim)``, with a head in front for ``sharing="none"``.
    A shorter input uses their first rows. There is no causal form: every mixture holds all tokens.

    State dicts of the ``linformer`` package on PyPI (``to_q``, ``to_k``, ``to_v``, ``to_out``) load too.

    Args:
        embed_dim: channels of a token.
        num_heads: heads of queries.
        max_length: most tokens.
        proj_dim: mixtures, ``k`` in the paper.
        sharing: which projections are one: "none", "headwise" (that of all heads; the ``linformer`` package),
            "key-value" (and ``E = F``), "layerwise" (and the layers': the layer has none and ``forward`` is given it).
        num_kv_heads: heads of keys and values, default ``num_heads``; 1 is the package's ``one_kv_head``.
        head_dim: channels of a head, default ``embed_dim / num_heads``.
        values_are_keys: whether values are the projected keys themselves: the package's ``share_kv``, which goes beyond
            the paper's sharing. Then there is one projection and no ``value`` layer.
        qkv_bias: whether queries, keys and values have a bias.
        dropout: of the weights, in training.

    Raises:
        ConfigError: an unknown ``sharing``, or numbers that do not divide.

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
        """Attend.

        Args:
            x: ``(B, N, C)`` with ``N <= max_length``.
            valid: ``(B, N)`` boolean, the tokens that take part; default: all.
            projection: ``(max_length, proj_dim)``, that of all layers, for ``sharing="layerwise"`` alone.

        Raises:
            InputError: more tokens than ``max_length``, shapes that do not fit, or a projection missing or too many.
        """
        count = x.shape[1] if x.ndim == 3 else 0
        if x.ndim != 3 or x.shape[-1] != self.query.in_features:
            raise InputError(f"attention of {tuple(x.shape)}: give (B, N, {self.query.in_features})")
        if count > self.max_length:
            raise InputError(f"{count} tokens: this Linformer was built for at most {self.max_length} (max_length)")
        if (projection is None) == (self.sharing == "layerwise"):
            raise InputError(f"sharing={self.sharing!r}: give a projection for 'layerwise', and only then")
        if valid is not None and valid.shape != x.shape[:2]:
            raise InputError(f"valid {tuple(valid.shape)}: give {tuple(x.shape[:2])}, one per token")
        by_key = self.proj_k if projection is None else projection
        by_value = by_key if self.proj_v is None else self.proj_v
        assert by_key is not None
        assert by_value is not None
        q = self._heads(self.query(x))
        k = self._project(self.key(x), by_key, valid)
        v = k if self.value is None else self._project(self.value(x), by_value, valid)
        out = attention(q, k, v, dropout=self.dropout if self.training else 0.0)
        return self.proj(out.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, heads, N, D)

    def _project(self, x: Tensor, projection: Tensor, valid: Tensor | None) -> Tensor:
        """Mix the tokens of keys or values: ``(B, N, heads * D) -> (B, heads, proj_dim, D)``."""
        if valid is not None:
            x = x * valid.unsqueeze(-1).to(x.dtype)
        return projection[..., : x.shape[1], :].transpose(-2, -1) @ self._heads(x)


def linformer_projection(*shape: int) -> nn.Parameter:
    """A fresh projection ``(..., max_length, proj_dim)``, uniform within ``1 / sqrt(proj_dim)``."""
    bound = shape[-1] ** -0.5
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


_LINFORMER_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out": "proj"}


def _rename_linformer(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for old, new in _LINFORMER_NAMES.items():
        for kind in ("weight", "bias"):
            if (key := f"{prefix}{old}.{kind}") in state:
                state[f"{prefix}{new}.{kind}"] = state.pop(key)
