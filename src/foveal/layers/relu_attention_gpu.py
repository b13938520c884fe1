"""Multi-scale ReLU linear attention in Triton, for NVIDIA GPUs: no intermediate result of the size of the map.

A head is a matrix of 3 D rows, its queries, keys and values, by N tokens. One kernel sums keys times values over the
tokens of a head, split over several programs; another applies these sums to the queries. Plain torch writes the
features of queries and keys, the numerator and the normaliser to memory in between. The backward pass has the same
two steps: sums over tokens, then the gradients of each token from them. All arithmetic is float32.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TOKENS = 128  #: tokens of a tile, a power of two
SPAN = 16  #: tiles that one program adds up


@triton.jit
def _load(heads, row, d, token, D, length, which):
    """A tile ``(D, T)`` of the queries (0), keys (1) or values (2) of a head, in float32."""
    place = (row * 3 * D + which * D + d[:, None]) * length + token[None, :]
    return tl.load(heads + place, (d[:, None] < D) & (token[None, :] < length), 0).to(tl.float32)


@triton.jit
def _product(a, b):
    """``a b^T`` of two tiles ``(D, T)``, with products that are not rounded to TF32."""
    return tl.dot(a, tl.trans(b), input_precision="ieee")


@triton.jit
def _apply(a, b):
    """``a^T b`` for ``a`` ``(D, E)`` and a tile ``b`` ``(D, T)``."""
    return tl.dot(tl.trans(a), b, input_precision="ieee")


@triton.jit
def _sum_keys(heads, context, norm, D, length, W: tl.constexpr, T: tl.constexpr, SPAN: tl.constexpr):
    """Add keys times values, ``(D, D)``, and keys, ``(D,)``, of a span of tokens to the sums of their head."""
    row = tl.program_id(0).to(tl.int64)
    d, t = tl.arange(0, W), tl.arange(0, T)
    first = tl.program_id(1) * SPAN * T
    sums = tl.zeros([W, W], tl.float32)
    total = tl.zeros([W], tl.float32)
    for tile in range(0, SPAN):
        token = first + tile * T + t
        k = tl.maximum(_load(heads, row, d, token, D, length, 1), 0)
        sums += _product(k, _load(heads, row, d, token, D, length, 2))
        total += tl.sum(k, 1)
    inside = (d[:, None] < D) & (d[None, :] < D)
    tl.atomic_add(context + (row * D + d[:, None]) * D + d[None, :], sums, inside)
    tl.atomic_add(norm + row * D + d, total, d < D)


@triton.jit
def _sums(context, norm, row, d, D):
    inside = (d[:, None] < D) & (d[None, :] < D)
    matrix = tl.load(context + (row * D + d[:, None]) * D + d[None, :], inside, 0)
    return matrix, tl.load(norm + row * D + d, d < D, 0)


@triton.jit
def _read(heads, context, norm, out, eps, D, length, W: tl.constexpr, T: tl.constexpr):
    """Store the attention of a tile of queries."""
    row = tl.program_id(0).to(tl.int64)
    d, token = tl.arange(0, W), tl.program_id(1) * T + tl.arange(0, T)
    matrix, total = _sums(context, norm, row, d, D)
    q = tl.maximum(_load(heads, row, d, token, D, length, 0), 0)
    y = _apply(matrix, q) / (tl.sum(q * total[:, None], 0) + eps)[None, :]
    place = (row * D + d[:, None]) * length + token[None, :]
    tl.store(out + place, y.to(out.dtype.element_ty), (d[:, None] < D) & (token[None, :] < length))


@triton.jit
def _slopes(heads, dout, row, d, token, D, length, matrix, total, eps):
    """Queries of a tile, gradient of their numerators ``(D, T)``, and of their normalisers ``(T,)``."""
    q = tl.maximum(_load(heads, row, d, token, D, length, 0), 0)
    place = (row * D + d[:, None]) * length + token[None, :]
    dy = tl.load(dout + place, (d[:, None] < D) & (token[None, :] < length), 0).to(tl.float32)
    normaliser = (tl.sum(q * total[:, None], 0) + eps)[None, :]
    numerator_slope = dy / normaliser
    y = _apply(matrix, q) / normaliser
    return q, numerator_slope, tl.sum(-numerator_slope * y, 0)


@triton.jit
def _sum_slopes(
    heads, dout, context, norm, dcontext, dnorm, eps, D, length, W: tl.constexpr, T: tl.constexpr, SPAN: tl.constexpr
):
    """Add the gradients of the two sums from a span of queries."""
    row = tl.program_id(0).to(tl.int64)
    d, t = tl.arange(0, W), tl.arange(0, T)
    first = tl.program_id(1) * SPAN * T
    matrix, total = _sums(context, norm, row, d, D)
    dmatrix = tl.zeros([W, W], tl.float32)
    dtotal = tl.zeros([W], tl.float32)
    for tile in range(0, SPAN):
        token = first + tile * T + t
        q, slope, norm_slope = _slopes(heads, dout, row, d, token, D, length, matrix, total, eps)
        inside = (d[:, None] < D) & (token[None, :] < length)  # beyond, a normaliser without epsilon is 0 / 0
        dmatrix += _product(q, tl.where(inside, slope, 0))
        dtotal += tl.sum(tl.where(inside, q * norm_slope[None, :], 0), 1)  # pyright: ignore[reportArgumentType] - an array, not a constant
    inside = (d[:, None] < D) & (d[None, :] < D)
    tl.atomic_add(dcontext + (row * D + d[:, None]) * D + d[None, :], dmatrix, inside)
    tl.atomic_add(dnorm + row * D + d, dtotal, d < D)


@triton.jit
def _gradients(heads, dout, context, norm, dcontext, dnorm, dheads, eps, D, length, W: tl.constexpr, T: tl.constexpr):
    """Store the gradients of queries, keys and values of a tile."""
    row = tl.program_id(0).to(tl.int64)
    d, token = tl.arange(0, W), tl.program_id(1) * T + tl.arange(0, T)
    matrix, total = _sums(context, norm, row, d, D)
    dmatrix, dtotal = _sums(dcontext, dnorm, row, d, D)
    q, slope, norm_slope = _slopes(heads, dout, row, d, token, D, length, matrix, total, eps)
    k = tl.maximum(_load(heads, row, d, token, D, length, 1), 0)
    v = _load(heads, row, d, token, D, length, 2)
    dq = _apply(tl.trans(matrix), slope) + total[:, None] * norm_slope[None, :]  # pyright: ignore[reportArgumentType] - an array, not a constant
    dk = _apply(tl.trans(dmatrix), v) + dtotal[:, None]
    mask = (d[:, None] < D) & (token[None, :] < length)
    place = (row * 3 * D + d[:, None]) * length + token[None, :]
    kind = dheads.dtype.element_ty
    tl.store(dheads + place, tl.where(q > 0, dq, 0).to(kind), mask)
    tl.store(dheads + place + D * length, tl.where(k > 0, dk, 0).to(kind), mask)
    tl.store(dheads + place + 2 * D * length, _apply(dmatrix, k).to(kind), mask)


def forward(heads: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the attention ``(B, H, D, N)`` of ``heads`` ``(B, H, 3 D, N)``, and the sums of its keys.

    These are keys times values, ``(B, H, D, D)``, and keys, ``(B, H, D)``, for the backward pass.
    """
    b, h, rows, n = heads.shape
    heads, d = heads.contiguous(), rows // 3
    out, context = heads.new_empty(b, h, d, n), heads.new_zeros(b, h, d, d, dtype=torch.float32)
    norm = heads.new_zeros(b, h, d, dtype=torch.float32)
    if out.numel():
        sizes, spans, tiles = _launch_sizes(d, n)
        with torch.cuda.device_of(heads):
            _launch(_sum_keys, b * h, spans)(heads, context, norm, d, n, **sizes, SPAN=SPAN)
            _launch(_read, b * h, tiles)(heads, context, norm, out, eps, d, n, **sizes)
    return out, context, norm


def backward(dout: Tensor, heads: Tensor, context: Tensor, norm: Tensor, eps: float) -> Tensor:
    """Return the gradient of ``heads``, given that of the attention and the sums that ``forward`` returned."""
    b, h, rows, n = heads.shape
    heads, dout, d = heads.contiguous(), dout.contiguous(), rows // 3
    dheads, dcontext, dnorm = torch.empty_like(heads), torch.zeros_like(context), torch.zeros_like(norm)
    if dheads.numel():
        sizes, spans, tiles = _launch_sizes(d, n)
        given = (heads, dout, context, norm, dcontext, dnorm)
        with torch.cuda.device_of(heads):
            _launch(_sum_slopes, b * h, spans)(*given, eps, d, n, **sizes, SPAN=SPAN)
            _launch(_gradients, b * h, tiles)(*given, dheads, eps, d, n, **sizes)
    return dheads


def _launch(kernel: Any, *programs: int) -> Any:
    return partial(kernel[programs], enable_fp_fusion=True)  # explicit, because Triton's default will change


def _launch_sizes(d: int, n: int) -> tuple[dict[str, Any], int, int]:
    """Return the sizes to compile with, and the numbers of spans and of tiles."""
    width = max(16, triton.next_power_of_2(d))  # matrix units multiply at least 16 x 16
    return {"W": width, "T": TOKENS}, triton.cdiv(n, TOKENS * SPAN), triton.cdiv(n, TOKENS)
