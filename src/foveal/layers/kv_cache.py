"""Caches of keys and values, for attention over a sequence that arrives in pieces.

A cache takes the keys and values of a piece and returns those to attend to: ``keys, values, start = update(k, v)``,
where ``start`` is the index of the piece's first key among them. ``length`` counts all tokens so far, which is the
position of the next token. Give each layer its own cache.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from ..errors import ConfigError, InputError


class Cache(Protocol):
    """The interface of a cache that :class:`foveal.layers.attention.Attention` uses."""

    @property
    def length(self) -> int | Tensor: ...

    @property
    def nbytes(self) -> int: ...

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, int | Tensor]: ...


def kv_cache_bytes(
    *,
    num_layers: int,
    num_kv_heads: int,
    head_dim: int,
    length: int,
    batch: int = 1,
    dtype: torch.dtype = torch.float16,
    window: int | None = None,
) -> int:
    """Bytes of the keys and values of ``length`` tokens: ``2 * layers * batch * kv heads * head_dim * length * bytes``.

    Args:
        num_layers: layers, each with a cache.
        num_kv_heads: heads of keys and values: ``num_heads`` for multi-head attention, 1 for multi-query.
        head_dim: channels of a head.
        length: tokens.
        batch: sequences at once.
        dtype: dtype of the cache.
        window: tokens in a sliding window, the current one included; the cache holds at most ``window - 1`` of them.
    """
    tokens = length if window is None else min(length, window - 1)
    return 2 * num_layers * batch * num_kv_heads * head_dim * tokens * dtype.itemsize


class GrowingCache:
    """Cache of all tokens: its memory grows with the sequence. Gradients pass through it."""

    def __init__(self) -> None:
        self.k: Tensor | None = None
        self.v: Tensor | None = None

    @property
    def length(self) -> int:
        return 0 if self.k is None else self.k.shape[-2]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return _nbytes(self.k, self.v)

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, int]:
        """Append ``(B, kv heads, L, D)`` and return all keys and values so far."""
        start = self.length
        self.k, self.v = _append(self.k, k), _append(self.v, v)
        return self.k, self.v, start


class SlidingWindowCache:
    """Cache of the last ``window - 1`` tokens, which is all that the next token attends to: constant memory.

    For attention layers with the same ``window`` (arXiv 2310.06825, section 2).
    """

    def __init__(self, window: int) -> None:
        if window < 1:
            raise ConfigError(
                f"window={window}: give the tokens that each token attends to, itself included, 1 or more"
            )
        self.window, self.length = window, 0
        self.k: Tensor | None = None
        self.v: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return _nbytes(self.k, self.v)

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, int]:
        """Append ``(B, kv heads, L, D)`` and return it with the window of tokens before it."""
        start = 0 if self.k is None else self.k.shape[-2]
        k, v = _append(self.k, k), _append(self.v, v)
        first = max(k.shape[-2] - (self.window - 1), 0)
        # Copies: a view would keep the whole piece in memory.
        self.k, self.v = k[..., first:, :].clone(), v[..., first:, :].clone()
        self.length += k.shape[-2] - start
        return k, v, start


class StaticCache(nn.Module):
    """Cache of fixed size for ``max_length`` tokens, written in place: every step has the same shapes, so it exports.

    ``length`` is a tensor, so an exported graph does not take its value as a constant. Not for training.

    Args:
        batch: sequences at once.
        num_kv_heads: heads of keys and values.
        max_length: most tokens in the cache.
        head_dim: channels of a head.
        dtype: dtype of keys and values.
        device: device of keys and values.
    """

    k: Tensor
    v: Tensor
    length: Tensor

    def __init__(
        self,
        batch: int,
        num_kv_heads: int,
        max_length: int,
        head_dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        shape = (batch, num_kv_heads, max_length, head_dim)
        self.register_buffer("k", torch.zeros(shape, dtype=dtype, device=device), persistent=False)
        self.register_buffer("v", torch.zeros(shape, dtype=dtype, device=device), persistent=False)
        self.register_buffer("length", torch.zeros((), dtype=torch.long, device=device), persistent=False)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values, with the part that is not in use yet."""
        return _nbytes(self.k, self.v)

    def reset(self) -> None:
        """Empty the cache for another sequence."""
        self.length.zero_()

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Append ``(B, kv heads, L, D)`` and return the whole cache, with zeros in the part that is not in use yet.

        Raises:
            InputError: another batch, number of heads or head size, or more than ``max_length`` tokens (not checked in
                an exported graph).
        """
        if k.shape[:2] != self.k.shape[:2] or k.shape[-1] != self.k.shape[-1]:
            batch, heads, _, dim = self.k.shape
            raise InputError(f"cache: keys have shape {tuple(k.shape)}; expected ({batch}, {heads}, L, {dim})")
        start, count = self.length.clone(), k.shape[-2]
        if not torch.compiler.is_compiling() and int(start) + count > self.k.shape[-2]:
            tokens = f"{int(start)} + {count} tokens do not fit in max_length={self.k.shape[-2]}"
            raise InputError(f"cache: {tokens}; call reset() or build it with a larger max_length")
        places = start + torch.arange(count, device=k.device)
        with torch.no_grad():
            self.k.index_copy_(2, places, k.to(self.k.dtype))
            self.v.index_copy_(2, places, v.to(self.v.dtype))
            self.length += count
        return self.k.to(k.dtype), self.v.to(v.dtype), start


def _append(earlier: Tensor | None, piece: Tensor) -> Tensor:
    if earlier is None:
        return piece
    if earlier.shape[:2] != piece.shape[:2] or earlier.shape[-1] != piece.shape[-1]:
        batch, heads, _, dim = earlier.shape
        shape = f"keys or values have shape {tuple(piece.shape)}"
        raise InputError(f"cache: {shape}; expected ({batch}, {heads}, L, {dim}), as for the earlier tokens")
    return torch.cat([earlier, piece], dim=-2)


def _nbytes(*tensors: Tensor | None) -> int:
    return sum(x.numel() * x.element_size() for x in tensors if x is not None)
