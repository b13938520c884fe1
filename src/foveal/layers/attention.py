"""Softmax attention.

``attention`` is the formula for any grouping of heads, with causal masks that are right behind a cache; ``Attention``
the layer around it, with caches from ``kv_cache``. ``LinformerAttention`` projects keys and values to a fixed number of
positions (arXiv 2006.04768). ``CascadedGroupAttention`` is that of Microsoft's EfficientViT (arXiv 2305.07027, section
3.1). ``flash_attention_reference`` is for reading.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import ConfigError, InputError, nearest
from .cascaded_attention import CascadedGroupAttention as CascadedGroupAttention
from .flash_attention import attention_traffic as attention_traffic
from .flash_attention import flash_attention_reference as flash_attention_reference
from .kv_cache import Cache, kv_cache_bytes
from .kv_cache import GrowingCache as GrowingCache
from .kv_cache import SlidingWindowCache as SlidingWindowCache
from .kv_cache import StaticCache as StaticCache


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    window: int | None = None,
    start: int | Tensor | None = None,
    mask: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """``softmax(q k^T * scale) v`` where several heads of queries may share one of keys and values.

    Query head ``i`` reads key head ``i // (H / G)``. torch's fused kernels run where they apply; see
    :class:`AttentionPaths` for which did.

    Args:
        q: queries, ``(B, H, L, D)``.
        k: keys, ``(B, G, S, D)``; ``G = H`` is multi-head, 1 multi-query (arXiv 1911.02150), between them grouped-query
            attention (arXiv 2305.13245).
        v: values, ``(B, G, S, E)``.
        causal: whether a query sees no key behind it.
        window: how many keys up to its own a query sees, default all; needs ``causal``.
        start: place of the first query's own key. Default ``S - L``: the last query belongs to the last key, as behind
            a cache. (torch's ``is_causal`` is ``start=0``: one query behind a cache would see the first key alone.)
        mask: ``(..., L, S)`` boolean, True where a query may see a key, or numbers to add to the scores.
        scale: of the scores, default ``1 / sqrt(D)``.
        dropout: rate at which weights are dropped, whatever the mode of a module around.

    Returns:
        ``(B, H, L, E)``. A query that may see no key gives 0.

    Raises:
        InputError: shapes that do not fit together, or a window without ``causal``.
    """
    _check_heads(q, k, v)
    if window is not None and (not causal or window < 1):
        raise InputError(f"window={window}, causal={causal}: a window needs causal=True and 1 or more keys")
    length, keys = q.shape[-2], k.shape[-2]
    start = keys - length if start is None else start
    known = not isinstance(start, Tensor)
    whole = known and (window is None or window >= start + length)  # no key is too far back for any query
    sees_all = whole and start >= keys - 1  # the first query sees every key, and so do all
    plain = causal and whole and not sees_all and mask is None and not isinstance(start, Tensor) and start == 0
    if causal and not sees_all and not plain:
        mask = _merge(_causal_mask(length, keys, start, window, q.device), mask)
    return F.scaled_dot_product_attention(
        q, k, v, mask, dropout, is_causal=plain, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


def _check_heads(q: Tensor, k: Tensor, v: Tensor) -> None:
    fits = q.ndim == k.ndim == v.ndim == 4 and q.shape[0] == k.shape[0] and k.shape[:3] == v.shape[:3]
    if not fits or q.shape[3] != k.shape[3] or q.shape[1] % k.shape[1]:
        shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        raise InputError(f"attention of {shapes}: give (B, H, L, D), (B, G, S, D), (B, G, S, E), G a divisor of H")


def _causal_mask(length: int, keys: int, start: int | Tensor, window: int | None, device: torch.device) -> Tensor:
    own = start + torch.arange(length, device=device).unsqueeze(-1)  # (L, 1): place of each query's own key
    places = torch.arange(keys, device=device)
    mask = places <= own
    return mask if window is None else mask & (places > own - window)


def _merge(causal: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return causal
    return causal & mask if mask.dtype == torch.bool else mask.masked_fill(~causal, -math.inf)


class AttentionPaths(TorchFunctionMode):
    """Note which kernel each call of torch's ``scaled_dot_product_attention`` runs inside the ``with`` block.

    ``with AttentionPaths() as ran: layer(x)``, then ``ran.paths`` is a list such as ``["flash"]``: "flash",
    "efficient", "cudnn", or "math", which writes the matrix of weights to memory.
    """

    _KERNELS = ("flash", "efficient", "cudnn")

    def __init__(self) -> None:
        super().__init__()
        self.paths: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        with _Operators() as ran:
            out = func(*args, **(kwargs or {}))
        fused = (kernel for kernel in self._KERNELS for name in ran.names if f"_{kernel}_attention" in name)
        self.paths.append(next(fused, "math"))
        return out


class _Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.scaled_dot_product_attention.default:  # inference mode hands it over in one piece
            with self:
                return func.decompose(*args, **(kwargs or {}))
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


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


def check_heads(embed_dim: int, num_heads: int, num_kv_heads: int, head_dim: int | None) -> None:
    """Raise ConfigError where channels do not divide into heads, or heads into groups."""
    if num_heads < 1 or num_kv_heads < 1 or num_heads % num_kv_heads:
        raise ConfigError(f"num_kv_heads={num_kv_heads} does not divide num_heads={num_heads}")
    if head_dim is None and embed_dim % num_heads:
        raise ConfigError(f"embed_dim={embed_dim} does not divide into num_heads={num_heads}; or give head_dim")
    if head_dim is not None and head_dim < 1:
        raise ConfigError(f"head_dim={head_dim}: give 1 or more")


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
            _rename(state, f"{prefix}{old}.{kind}", f"{prefix}{new}.{kind}")
