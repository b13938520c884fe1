"""The formula of softmax attention, for any grouping of heads, with causal masks that are right behind a cache."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import ConfigError, InputError


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


def check_heads(embed_dim: int, num_heads: int, num_kv_heads: int, head_dim: int | None) -> None:
    """Raise ConfigError where channels do not divide into heads, or heads into groups."""
    if num_heads < 1 or num_kv_heads < 1 or num_heads % num_kv_heads:
        raise ConfigError(f"num_kv_heads={num_kv_heads} does not divide num_heads={num_heads}")
    if head_dim is None and embed_dim % num_heads:
        raise ConfigError(f"embed_dim={embed_dim} does not divide into num_heads={num_heads}; or give head_dim")
    if head_dim is not None and head_dim < 1:
        raise ConfigError(f"head_dim={head_dim}: give 1 or more")
