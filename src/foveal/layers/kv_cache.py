"""What attention keeps of earlier tokens while a sequence arrives in pieces.

A cache takes the keys and values of a piece and gives back those to attend to: ``keys, values, start = update(k, v)``,
where ``start`` is the place of the piece's first key among them. ``length`` counts all tokens seen: it is the position
of the next one. Give each layer a cache of its own.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from ..errors import ConfigError, InputError


class Cache(Protocol):
    """What :class:`foveal.layers.attention.Attention` asks of a cache."""

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
        num_kv_heads: heads of keys and values: all for multi-head attention, 1 for multi-query.
        head_dim: channels of a head.
        length: tokens.
        batch: sequences at once.
        dtype: of the cache.
        window: tokens that a sliding window sees, itself included; all but one are kept.
    """
    kept = length if window is None else min(length, window - 1)
    return 2 * num_layers * batch * num_kv_heads * head_dim * kept * dtype.itemsize


class GrowingCache:
    """Keeps everything: memory grows with the sequence. Gradients pass."""

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
        """Append ``(B, kv heads, L, D)``; everything so far comes back."""
        start = self.length
        self.k, self.v = _append(self.k, k), _append(self.v, v)
        return self.k, self.v, start


class SlidingWindowCache:
    """Keeps the last ``window - 1`` tokens, all that the next one sees beside itself: constant memory.

    For attention with the same ``window`` (arXiv 2310.06825, section 2).
    """

    def __init__(self, window: int) -> None:
        if window < 1:
            raise ConfigError(f"window={window}: give the number of tokens that a token sees, itself included")
        self.window, self.length = window, 0
        self.k: Tensor | None = None
        self.v: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return _nbytes(self.k, self.v)

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, int]:
        """Append ``(B, kv heads, L, D)``; the window before the piece comes back with it."""
        start = 0 if self.k is None else self.k.shape[-2]
        k, v = _append(self.k, k), _append(self.v, v)
        first = max(k.shape[-2] - (self.window - 1), 0)
        # Copies: a view would keep the whole piece in memory.
        self.k, self.v = k[..., first:, :].clone(), v[..., first:, :].clone()
        self.length += k.shape[-2] - start
        return k, v, start


class StaticCache(nn.Module):
    """Memory for ``max_length`` tokens from the start, written in place: one shape for every step, so it exports.

    ``length`` is a tensor, and what it holds is no constant of an exported graph. Not for training.

    Args:
        batch: sequences at once.
        num_kv_heads: heads of keys and values.
        max_length: tokens there is room for.
        head_dim: channels of a head.
        dtype: of keys and values.
        device: of the memory.
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
        """Bytes of keys and values, room that is not used yet included."""
        return _nbytes(self.k, self.v)

    def reset(self) -> None:
        """Start another sequence."""
        self.length.zero_()

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Write ``(B, kv heads, L, D)`` behind what is there; the whole memory comes back, with zeros at its end.

        Raises:
            InputError: another batch, number of heads or head size, or no room (not checked in an exported graph).
        """
        if k.shape[:2] != self.k.shape[:2] or k.shape[-1] != self.k.shape[-1]:
            raise InputError(f"keys of {tuple(k.shape)} do not fit a cache of {tuple(self.k.shape)}")
        start, count = self.length.clone(), k.shape[-2]
        if not torch.compiler.is_compiling() and int(start) + count > self.k.shape[-2]:
            raise InputError(f"{int(start)} + {count} tokens: the cache has room for {self.k.shape[-2]}")
        places = start + torch.arange(count, device=k.device)
        with torch.no_grad():
            self.k.index_copy_(2, places, k.to(self.k.dtype))
            self.v.index_copy_(2, places, v.to(self.v.dtype))
            self.length += count
        return self.k.to(k.dtype), self.v.to(v.dtype), start


def _append(kept: Tensor | None, piece: Tensor) -> Tensor:
    if kept is None:
        return piece
    if kept.shape[:2] != piece.shape[:2] or kept.shape[-1] != piece.shape[-1]:
        raise InputError(f"keys or values of {tuple(piece.shape)} do not fit the cache's {tuple(kept.shape)}")
    return torch.cat([kept, piece], dim=-2)


def _nbytes(*tensors: Tensor | None) -> int:
    return sum(x.numel() * x.element_size() for x in tensors if x is not None)
