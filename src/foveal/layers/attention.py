"""Softmax attention.

``attention`` is the formula for any grouping of heads, with causal masks that are right behind a cache; ``Attention``
the layer around it, with caches from ``kv_cache``. ``LinformerAttention`` projects keys and values to a fixed number of
positions (arXiv 2006.04768). ``CascadedGroupAttention`` is that of Microsoft's EfficientViT (arXiv 2305.07027, section
3.1). ``flash_attention_reference`` is for reading.
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
from .linformer import LinformerAttention as LinformerAttention
from .linformer import Sharing as Sharing


def rotate(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    """Rotary position embedding (RoPE, arXiv 2104.09864) of ``(..., L, D)`` at ``positions`` ``(L,)``; shape is kept.

    Channel ``i`` turns with channel ``i + D / 2``, as in Llama's checkpoints (the paper pairs neighbours), by
    ``position * base^(-2i / D)``. Angles are computed in float32 at least.
    """
    half = x.shape[-1] // 2
    wide = torch.promote_types(x.dtype, torch.float32)
    speeds = base ** (torch.arange(half, device=x.device, dtype=wide) / -half)
    angles = positions.to(wide).unsqueeze(-1) * speeds  # (L, D / 2)
    a, b = x.to(wide).split(half, dim=-1)
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], dim=-1).to(x.dtype)


class Attention(nn.Module):
    """Self-attention among the tokens of ``(N, L, C)``; the shape is kept. Multi-head, multi-query or grouped-query.

    One linear layer, ``qkv``, makes the queries of all heads, then the keys, then the values. State dicts with
    ``q_proj``, ``k_proj``, ``v_proj`` and ``o_proj`` (Llama), or with ``in_proj_weight`` and ``out_proj``
    (``torch.nn.MultiheadAttention``), load too.

    Args:
        embed_dim: channels of a token.
        num_heads: heads of queries.
        num_kv_heads: heads of keys and values, a divisor of ``num_heads``; default: as many.
        head_dim: channels of a head, default ``embed_dim / num_heads``.
        qkv_bias: whether queries, keys and values have a bias.
        proj_bias: whether the output has one.
        qk_norm: whether queries and keys pass an RMS norm over their head's channels (arXiv 2302.05442, section 2).
        rope_base: base of rotary position embeddings, ``None`` for none.
        causal: whether a token sees only those before it and itself.
        window: how many tokens up to itself a token sees, default all; needs ``causal``.
        dropout: of the weights, in training.

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
            raise ConfigError(f"head_dim={head_dim}: rotary embeddings turn pairs of channels, give an even number")
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
        """Attend.

        Args:
            x: ``(N, L, C)``.
            valid: ``(N, S)`` boolean, the tokens that may be attended to; default: all. With a cache: all S tokens that
                it gives back.
            cache: of :mod:`foveal.layers.kv_cache`, with what came before ``x``. Only for causal attention.

        Raises:
            InputError: shapes that do not fit, or a cache that does not suit the layer.
        """
        if x.ndim != 3 or x.shape[-1] != self.qkv.in_features:
            raise InputError(f"attention of {tuple(x.shape)}: give (N, L, {self.qkv.in_features})")
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
        mask = None
        if valid is not None:
            if valid.shape != (x.shape[0], k.shape[2]):
                raise InputError(f"valid {tuple(valid.shape)}: give ({x.shape[0]}, {k.shape[2]}), one per token")
            mask = valid[:, None, None, :]
        out = attention(
            q,
            k,
            v,
            causal=self.causal,
            window=self.window,
            start=start,
            mask=mask,
            dropout=self.dropout if self.training else 0.0,
        )
        return self.proj(out.transpose(1, 2).flatten(2))

    def _check_cache(self, cache: Cache) -> None:
        if not self.causal:
            raise InputError("a cache needs causal attention: build the layer with causal=True")
        kept = getattr(cache, "window", None)
        if kept is not None and (self.window is None or self.window > kept):
            raise InputError(f"the cache keeps a window of {kept} tokens, the layer sees {self.window or 'all'}")

    def cache_bytes(self, length: int, *, batch: int = 1, dtype: torch.dtype = torch.float16) -> int:
        """Bytes that the keys and values of ``length`` tokens take in this layer; see :func:`kv_cache_bytes`."""
        heads = self.num_kv_heads
        return kv_cache_bytes(
            num_layers=1,
            num_kv_heads=heads,
            head_dim=self.head_dim,
            length=length,
            batch=batch,
            dtype=dtype,
            window=self.window,
        )

    def grouped(self, num_kv_heads: int) -> Attention:
        """A copy with fewer heads of keys and values: each is the mean of those it replaces.

        The start for a short further training in arXiv 2305.13245, section 2.1.

        Raises:
            ConfigError: ``num_kv_heads`` does not divide the number of those there are.
        """
        if num_kv_heads < 1 or self.num_kv_heads % num_kv_heads:
            raise ConfigError(f"num_kv_heads={num_kv_heads} does not divide the {self.num_kv_heads} heads there are")
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


def _fuse_projections(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Bring separate projections in a state dict that is being loaded into the fused layout, in place."""
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
