"""The algorithm of FlashAttention in plain torch: softmax attention in tiles, to be read and to count memory traffic.

It is exact but slow. For speed, :class:`foveal.layers.attention.Attention` calls torch's
``scaled_dot_product_attention``. This module shows why the tiled algorithm is fast: it never writes an n x n matrix to
memory, and :func:`attention_traffic` counts how much traffic that saves.

Sources: online softmax, arXiv 1805.02867; tiles and traffic, arXiv 2205.14135 (theorem 2); the outer loop over tiles of
queries, one rescaling at the end, and the logsumexp for the backward pass, arXiv 2307.08691 (section 3.1).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError


class Traffic(NamedTuple):
    """How many numbers pass between slow and fast memory in the forward pass, over all heads and the whole batch."""

    standard: int  #: for the algorithm that writes scores and weights to slow memory
    tiled: int  #: for the tiled algorithm
    row_tile: int  #: queries in fast memory at once
    column_tile: int  #: keys and values in fast memory at once

    @property
    def ratio(self) -> float:
        """Traffic of the standard algorithm over that of the tiled one."""
        return self.standard / self.tiled


class FlashResult(NamedTuple):
    """Results of :func:`flash_attention_reference`."""

    output: Tensor  #: ``(..., N, E)``
    logsumexp: Tensor  #: logsumexp of each query's scores, ``(..., N)``; -inf for a query that attends to no key
    traffic: Traffic


def attention_traffic(
    n: int,
    m: int,
    d: int,
    *,
    e: int | None = None,
    memory: int = 48 * 1024,
    tile: tuple[int, int] | None = None,
    heads: int = 1,
) -> Traffic:
    """Count the numbers that the standard and the tiled algorithm read and write (forward pass, no mask).

    The standard algorithm reads q and k, writes the n x m scores, reads them and writes weights, reads weights and v,
    and writes the output: ``2nd + 2md + 4nm`` for ``d = e``, which is Theta(nd + n^2). The tiled algorithm reads the
    queries and writes outputs and logsumexps once, and reads all keys and values for each tile of queries:
    ``2nd + n + 2md n / rows``, which is Theta(n^2 d^2 / M) for ``d <= M <= nd``. Both do the same multiplications,
    O(n^2 d).

    Args:
        n: queries.
        m: keys.
        d: channels of queries and keys.
        e: channels of values, default ``d``.
        memory: numbers M that fit in the fast memory (96 KiB in float16 hold 49152).
        tile: queries and keys of a tile. Default: ``M / 4d`` queries, so that these, their outputs, and equally many
            keys and values fit; and ``min(M / 4d, d)`` keys, so that the scores fit too.
        heads: heads times batch.

    Raises:
        InputError: the fast memory is smaller than 4 vectors.
    """
    e = d if e is None else e
    wide = max(d, e)
    if memory < 4 * wide:
        raise InputError(f"memory={memory} numbers: give {4 * wide} or more, room for one row each of q, k, v, output")
    rows, columns = tile or (memory // (4 * wide), min(memory // (4 * wide), wide))
    standard = (n * d + m * d + n * m) + 2 * n * m + (n * m + m * e + n * e)
    tiled = n * (d + e + 1) + -(-n // rows) * m * (d + e)
    return Traffic(heads * standard, heads * tiled, min(rows, n), min(columns, m))


def flash_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    tile: int | tuple[int, int] | None = None,
    memory: int = 48 * 1024,
) -> FlashResult:
    """Compute attention tile by tile with a running softmax. The backward pass recomputes weights from the logsumexp.

    The result equals ``F.scaled_dot_product_attention``, except that ``causal`` aligns the last query with the last
    key. Computed in float64 for inputs of any dtype.

    Args:
        q: queries, ``(..., N, D)``.
        k: keys, ``(..., M, D)``.
        v: values, ``(..., M, E)``.
        causal: whether each query attends only to keys up to its own position.
        scale: factor on the scores, default ``1 / sqrt(D)``.
        tile: queries and keys of a tile, or one number for both; default: as many as fit in ``memory``.
        memory: numbers that fit in the fast memory for which the traffic is reported.

    Returns:
        The output in the dtype of ``q`` (0 for a query that attends to no key), the logsumexp and the traffic.

    Raises:
        InputError: shapes that do not fit together, or a tile or memory that is too small.
    """
    if q.shape[:-2] != k.shape[:-2] or k.shape[:-1] != v.shape[:-1] or q.shape[-1] != k.shape[-1] or q.ndim < 2:
        shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        raise InputError(f"attention: {shapes} do not fit together; expected (..., N, D), (..., M, D), (..., M, E)")
    heads = math.prod(q.shape[:-2])
    tile = (tile, tile) if isinstance(tile, int) else tile
    if tile is not None and min(tile) < 1:
        raise InputError(f"tile={tile}: give 1 or more rows and columns")
    (n, d), (m, e) = q.shape[-2:], v.shape[-2:]
    traffic = attention_traffic(n, m, d, e=e, memory=memory, tile=tile, heads=heads)
    scale = d**-0.5 if scale is None else scale
    output, logsumexp = _Tiled.apply(q, k, v, causal, scale, traffic.row_tile, traffic.column_tile)
    return FlashResult(output, logsumexp, traffic)


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, rows: int, columns: int) -> Any:
        wide = torch.float64  # this is a reference, so its own rounding must not matter
        out = q.new_zeros(*q.shape[:-1], v.shape[-1])
        logsumexp = torch.zeros(q.shape[:-1], dtype=wide, device=q.device)
        for i in _tiles(q.shape[-2], rows):
            top = logsumexp[..., i].new_full(logsumexp[..., i].shape, -math.inf)  # largest score so far
            total = torch.zeros_like(top)  # sum of e^(score - top)
            part = torch.zeros(*top.shape, v.shape[-1], dtype=wide, device=q.device)
            for j in _tiles(k.shape[-2], columns):
                scores = _scores(q, k, i, j, causal, scale)
                new_top = torch.maximum(top, scores.amax(-1))
                floor = new_top.masked_fill(new_top == -math.inf, 0)  # -inf - -inf would be NaN
                weights, old = (scores - floor.unsqueeze(-1)).exp(), (top - floor).exp()
                total = old * total + weights.sum(-1)
                part = old.unsqueeze(-1) * part + weights @ v[..., j, :].to(wide)
                top = new_top
            out[..., i, :] = (part / total.masked_fill(total == 0, 1).unsqueeze(-1)).to(out.dtype)
            logsumexp[..., i] = top + total.log()
        ctx.save_for_backward(q, k, v, out, logsumexp)
        ctx.settings = causal, scale, rows, columns
        returned = logsumexp.to(torch.promote_types(q.dtype, torch.float32))
        ctx.mark_non_differentiable(returned)
        return out, returned

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        q, k, v, out, logsumexp = ctx.saved_tensors
        causal, scale, rows, columns = ctx.settings
        wide = logsumexp.dtype
        grad = grads[0].to(wide)
        dq, dk, dv = (torch.zeros(x.shape, dtype=wide, device=x.device) for x in (q, k, v))
        inner = (grad * out.to(wide)).sum(-1, keepdim=True)  # the term that the softmax's gradient subtracts
        base = logsumexp.masked_fill(logsumexp == -math.inf, 0).unsqueeze(-1)
        for j in _tiles(k.shape[-2], columns):
            for i in _tiles(q.shape[-2], rows):
                weights = (_scores(q, k, i, j, causal, scale) - base[..., i, :]).exp()
                dv[..., j, :] += weights.transpose(-2, -1) @ grad[..., i, :]
                dscores = weights * (grad[..., i, :] @ v[..., j, :].to(wide).transpose(-2, -1) - inner[..., i, :])
                dq[..., i, :] += scale * dscores @ k[..., j, :].to(wide)
                dk[..., j, :] += scale * dscores.transpose(-2, -1) @ q[..., i, :].to(wide)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None, None


def _tiles(length: int, side: int) -> list[slice]:
    return [slice(start, min(start + side, length)) for start in range(0, length, side)]


def _scores(q: Tensor, k: Tensor, i: slice, j: slice, causal: bool, scale: float) -> Tensor:
    """Return the scaled scores of one tile, -inf where the query may not attend to the key."""
    wide = torch.float64
    scores = scale * q[..., i, :].to(wide) @ k[..., j, :].to(wide).transpose(-2, -1)
    if causal:
        shift = k.shape[-2] - q.shape[-2]
        row = torch.arange(i.start, i.stop, device=q.device).unsqueeze(-1) + shift
        scores = scores.masked_fill(torch.arange(j.start, j.stop, device=q.device) > row, -math.inf)
    return scores
