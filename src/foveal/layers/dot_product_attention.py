"""Softmax attention as a function, for any grouping of heads, with causal masks that fit a cache of earlier tokens."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import ConfigError, InputError
from .leaf import leaf


@leaf
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
    """Compute ``softmax(q k^T * scale) v``, where several query heads may share a head of keys and values.

    Query head ``i`` uses key head ``i // (H / G)``. torch's fused kernels run where they apply;
    :class:`AttentionPaths` records which one did.

    Args:
        q: queries, ``(B, H, L, D)``.
        k: keys, ``(B, G, S, D)``. ``G = H`` is multi-head attention, ``G = 1`` multi-query (arXiv 1911.02150), anything
            between grouped-query attention (arXiv 2305.13245).
        v: values, ``(B, G, S, E)``.
        causal: whether a query attends only to keys up to its own position.
        window: number of keys, its own and those before it, that a query attends to; default: all. Needs ``causal``.
        start: index of the key that belongs to the first query. Default ``S - L``: the last query belongs to the last
            key, as with a cache of earlier tokens. (torch's ``is_causal`` is ``start=0``: a single query after cached
            tokens would attend only to the first key.)
        mask: ``(..., L, S)`` boolean, True where a query may attend to a key; or numbers that are added to the scores.
        scale: factor on the scores, default ``1 / sqrt(D)``.
        dropout: rate at which weights are dropped; it is applied in evaluation mode too.

    Returns:
        ``(B, H, L, E)``, 0 for a query that may attend to no key.

    Raises:
        InputError: shapes that do not fit together, or a window without ``causal``.
    """
    _check_heads(q, k, v)
    if window is not None and (not causal or window < 1):
        raise InputError(f"window={window}, causal={causal}: a window needs causal=True and 1 or more keys")
    length, keys = q.shape[-2], k.shape[-2]
    start = keys - length if start is None else start
    constant_start = not isinstance(start, Tensor)
    no_window = constant_start and (window is None or window >= start + length)  # no key is outside of any window
    full = no_window and start >= keys - 1  # the first query attends to every key, and so do all others
    is_causal = causal and no_window and not full and mask is None and not isinstance(start, Tensor) and start == 0
    if causal and not full and not is_causal:
        mask = _combine_masks(_causal_mask(length, keys, start, window, q.device), mask)
    grouped = bool(q.shape[1] != k.shape[1])  # torch.jit.trace compares sizes as tensors
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=is_causal, scale=scale, enable_gqa=grouped)


def _check_heads(q: Tensor, k: Tensor, v: Tensor) -> None:
    fits = q.ndim == k.ndim == v.ndim == 4 and q.shape[0] == k.shape[0] and k.shape[:3] == v.shape[:3]
    if not fits or q.shape[3] != k.shape[3] or q.shape[1] % k.shape[1]:
        shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        expected = "(B, H, L, D), (B, G, S, D), (B, G, S, E) with G a divisor of H"
        raise InputError(f"attention: {shapes} do not fit together; expected {expected}")


def _causal_mask(length: int, keys: int, start: int | Tensor, window: int | None, device: torch.device) -> Tensor:
    own = start + torch.arange(length, device=device).unsqueeze(-1)  # (L, 1): index of each query's own key
    positions = torch.arange(keys, device=device)
    mask = positions <= own
    return mask if window is None else mask & (positions > own - window)


def _combine_masks(causal: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return causal
    return causal & mask if mask.dtype == torch.bool else mask.masked_fill(~causal, -math.inf)


class AttentionPaths(TorchFunctionMode):
    """Record which kernel each call of torch's ``scaled_dot_product_attention`` runs inside the ``with`` block.

    After ``with AttentionPaths() as record: layer(x)``, ``record.paths`` has one entry per call: "flash", "efficient",
    "cudnn", or "math", which writes the matrix of weights to memory.
    """

    _KERNELS = ("flash", "efficient", "cudnn")

    def __init__(self) -> None:
        super().__init__()
        self.paths: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        with _Operators() as record:
            out = func(*args, **(kwargs or {}))
        fused = (kernel for kernel in self._KERNELS for name in record.names if f"_{kernel}_attention" in name)
        self.paths.append(next(fused, "math"))
        return out


class _Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.scaled_dot_product_attention.default:  # not decomposed in inference mode
            with self:
                return func.decompose(*args, **(kwargs or {}))
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def check_heads(embed_dim: int, num_heads: int, num_kv_heads: int, head_dim: int | None) -> None:
    """Raise ConfigError where the channels do not divide into heads, or the heads into groups."""
    if num_heads < 1 or num_kv_heads < 1 or num_heads % num_kv_heads:
        raise ConfigError(f"num_kv_heads={num_kv_heads} does not divide num_heads={num_heads}: give a divisor")
    if head_dim is None and embed_dim % num_heads:
        raise ConfigError(
            f"embed_dim={embed_dim} does not divide into num_heads={num_heads}: give a divisor or head_dim"
        )
    if head_dim is not None and head_dim < 1:
        raise ConfigError(f"head_dim={head_dim}: give 1 or more")
