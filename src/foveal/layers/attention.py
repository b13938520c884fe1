"""Softmax attention: the layer, and the names of the modules next to it that belong to it.

``attention`` computes the formula for any grouping of heads, with causal masks that fit a cache of earlier tokens.
``Attention`` is the layer around it; its caches are in ``kv_cache``. ``LinformerAttention`` projects keys and values to
a fixed number of positions (arXiv 2006.04768). ``CascadedGroupAttention`` is the attention of Microsoft's EfficientViT
(arXiv 2305.07027, section 3.1). ``flash_attention_reference`` shows the algorithm of FlashAttention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, InputError
from .cascaded_attention import CascadedGroupAttention as CascadedGroupAttention
from .dot_product_attention import AttentionPaths as AttentionPaths
from .dot_product_attention import attention as attention
from .dot_product_attention import check_heads
from .flash_attention import attention_traffic as attention_traffic
from .flash_attention import flash_attention_reference as flash_attention_reference
from .kv_cache import Cache, kv_cache_bytes
from .kv_cache import GrowingCache as GrowingCache
from .kv_cache import SlidingWindowCache as SlidingWindowCache
from .kv_cache import StaticCache as StaticCache
from .leaf import leaf
from .linformer import LinformerAttention as LinformerAttention
from .linformer import Sharing as Sharing


def rotate(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    """Apply rotary position embedding (RoPE, arXiv 2104.09864) to ``(..., L, D)``; the shape is kept.

    Channels ``i`` and ``i + D / 2`` are rotated as a pair, as in Llama's checkpoints (the paper pairs neighbours), by
    ``position * base^(-2i / D)``. Angles are computed in float32 or wider.

    Args:
        x: queries or keys, ``(..., L, D)``.
        positions: position of each token, ``(L,)``.
        base: base of the angles.
    """
    half = x.shape[-1] // 2
    wide = torch.promote_types(x.dtype, torch.float32)
    frequencies = base ** (torch.arange(half, device=x.device, dtype=wide) / -half)
    angles = positions.to(wide).unsqueeze(-1) * frequencies  # (L, D / 2)
    a, b = x.to(wide).split(half, dim=-1)
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], dim=-1).to(x.dtype)


class Attention(nn.Module):
    """Self-attention over the tokens of ``(N, L, C)``: multi-head, multi-query or grouped-query; the shape is kept.

    One linear layer, ``qkv``, computes the queries of all heads, then the keys, then the values. State dicts with
    ``q_proj``, ``k_proj``, ``v_proj`` and ``o_proj`` (Llama), or with ``in_proj_weight`` and ``out_proj``
    (``torch.nn.MultiheadAttention``), load too.

    Args:
        embed_dim: channels of a token.
        num_heads: heads of queries.
        num_kv_heads: heads of keys and values, a divisor of ``num_heads``, which is the default.
        head_dim: channels of a head, default ``embed_dim / num_heads``.
        qkv_bias: whether queries, keys and values have a bias.
        proj_bias: whether the output projection has a bias.
        qk_norm: whether queries and keys pass through an RMS norm over the channels of their head (arXiv 2302.05442,
            section 2).
        rope_base: base of rotary position embeddings, ``None`` for none.
        causal: whether a token attends only to itself and the tokens before it.
        window: number of tokens, itself and those before it, that a token attends to; default: all. Needs ``causal``.
        dropout: rate at which attention weights are dropped in training.

    Raises:
        ConfigError: numbers of heads or channels that do not divide, or a window without ``causal``.

    Source: "Attention Is All You Need", arXiv 1706.03762, section 3.2; grouped queries, arXiv 2305.13245.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        *,
        head_dim: int | None = None,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        qk_norm: bool = False,
        rope_base: float | None = None,
        causal: bool = False,
        window: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        check_heads(embed_dim, num_heads, num_kv_heads, head_dim)
        head_dim = embed_dim // num_heads if head_dim is None else head_dim
        if rope_base is not None and head_dim % 2:
            raise ConfigError(f"head_dim={head_dim}: rotary embeddings rotate pairs of channels, give an even number")
        if window is not None and (not causal or window < 1):
            raise ConfigError(f"window={window}, causal={causal}: a window needs causal=True and 1 or more tokens")
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.rope_base, self.causal, self.window, self.dropout = rope_base, causal, window, dropout
        self.qkv = nn.Linear(embed_dim, (num_heads + 2 * num_kv_heads) * head_dim, bias=qkv_bias)
        self.q_norm = nn.RMSNorm(head_dim, eps=1e-6) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(head_dim, eps=1e-6) if qk_norm else nn.Identity()
        self.proj = nn.Linear(num_heads * head_dim, embed_dim, bias=proj_bias)
        self.register_load_state_dict_pre_hook(_fuse_projections)

    def forward(self, x: Tensor, valid: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """Attend to the tokens of ``x`` and of the cache.

        Args:
            x: ``(N, L, C)``.
            valid: ``(N, S)`` boolean, True for the tokens that may be attended to; default: all. With a cache, S counts
                all tokens that the cache returns.
            cache: a cache from :mod:`foveal.layers.kv_cache` with the tokens before ``x``. Only for causal attention.

        Raises:
            InputError: shapes that do not fit, or a cache that does not fit the layer.
        """
        _check_tokens(x, self.qkv.in_features)
        sizes = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        q, k, v = self.qkv(x).unflatten(-1, (sum(sizes), self.head_dim)).transpose(1, 2).split(sizes, dim=1)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.rope_base is not None:
            first = 0 if cache is None else cache.length
            positions = first + torch.arange(x.shape[1], device=x.device)
            q, k = rotate(q, positions, self.rope_base), rotate(k, positions, self.rope_base)
        start: int | Tensor | None = None
        if cache is not None:
            self._check_cache(cache)
            k, v, start = cache.update(k, v)
        out = attention(
            q,
            k,
            v,
            causal=self.causal,
            window=self.window,
            start=start,
            mask=None if valid is None else _key_mask(valid, k),
            dropout=self.dropout if self.training else 0.0,
        )
        return self.proj(out.transpose(1, 2).flatten(2))

    def _check_cache(self, cache: Cache) -> None:
        if not self.causal:
            raise InputError("a cache needs causal attention: build the layer with causal=True")
        window = getattr(cache, "window", None)
        if window is not None and (self.window is None or self.window > window):
            difference = f"the cache has window={window} and the layer window={self.window}"
            raise InputError(f"{difference}: give the cache the layer's window, or use a cache without a window")

    def cache_bytes(self, length: int, *, batch: int = 1, dtype: torch.dtype = torch.float16) -> int:
        """Bytes of the keys and values of ``length`` tokens in this layer; see :func:`kv_cache_bytes`."""
        return kv_cache_bytes(
            num_layers=1,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            length=length,
            batch=batch,
            dtype=dtype,
            window=self.window,
        )

    def grouped(self, num_kv_heads: int) -> Attention:
        """Return a copy with fewer heads of keys and values, each the mean of the heads that it replaces.

        arXiv 2305.13245, section 2.1, starts a short further training from this.

        Raises:
            ConfigError: ``num_kv_heads`` does not divide the layer's number of heads of keys and values.
        """
        if num_kv_heads < 1 or self.num_kv_heads % num_kv_heads:
            raise ConfigError(
                f"num_kv_heads={num_kv_heads} does not divide the layer's {self.num_kv_heads}: give a divisor"
            )
        new = Attention(
            self.qkv.in_features,
            self.num_heads,
            num_kv_heads,
            head_dim=self.head_dim,
            qkv_bias=self.qkv.bias is not None,
            proj_bias=self.proj.bias is not None,
            qk_norm=isinstance(self.q_norm, nn.RMSNorm),
            rope_base=self.rope_base,
            causal=self.causal,
            window=self.window,
            dropout=self.dropout,
        ).to(self.qkv.weight)
        state = self.state_dict()
        for key in [key for key in state if key.startswith("qkv.")]:
            sizes = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
            q, k, v = state[key].unflatten(0, (-1, self.head_dim)).split(sizes)
            pooled = (part.unflatten(0, (num_kv_heads, -1)).mean(1) for part in (k, v))
            state[key] = torch.cat([q, *pooled]).flatten(0, 1)
        new.load_state_dict(state)
        return new.train(self.training)


@leaf
def _check_tokens(x: Tensor, channels: int) -> None:
    if x.ndim != 3 or x.shape[-1] != channels:
        raise InputError(f"attention: x has shape {tuple(x.shape)}; expected (N, L, {channels})")


@leaf
def _key_mask(valid: Tensor, k: Tensor) -> Tensor:
    """Return the mask ``(N, 1, 1, S)`` of ``valid`` ``(N, S)`` for keys ``(N, heads, S, D)``."""
    if valid.shape != (k.shape[0], k.shape[2]):
        expected = f"({k.shape[0]}, {k.shape[2]}), one entry per token"
        raise InputError(f"attention: valid has shape {tuple(valid.shape)}; expected {expected}")
    return valid[:, None, None, :]


def _fuse_projections(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Convert separate projections in a state dict that is being loaded to the fused layout, in place."""
    for kind in ("weight", "bias"):
        parts = [f"{prefix}{name}_proj.{kind}" for name in "qkv"]
        if all(part in state for part in parts):
            state[f"{prefix}qkv.{kind}"] = torch.cat([state.pop(part) for part in parts])
        _rename(state, f"{prefix}in_proj_{kind}", f"{prefix}qkv.{kind}")
        for name in ("o_proj", "out_proj"):
            _rename(state, f"{prefix}{name}.{kind}", f"{prefix}proj.{kind}")


def _rename(state: dict[str, Any], old: str, new: str) -> None:
    if old in state:
        state[new] = state.pop(old)
