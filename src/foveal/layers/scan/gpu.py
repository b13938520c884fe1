"""The selective scan in Triton, for NVIDIA GPUs: one program for each channel of each image.

A program processes the sequence in tiles of all N states by a number of tokens. Inside a tile, an associative scan
combines spans of tokens, which store the sum of their exponents as in ``reference.py``. Values that pass from tile to
tile are float64.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS = 2048  #: elements of a tile: states times tokens, both powers of two


@triton.jit
def _combine(x_first, h_first, x_second, h_second):
    return x_first + x_second, h_first * tl.exp(x_second) + h_second


@triton.jit
def _softplus(x):
    e = tl.exp(tl.where(x > 20, 0, x))
    w = 1 + e
    # For a small e, w = 1 + e has lost digits of e. The factor log(w) / (w - 1) has the same error and cancels it.
    return tl.where(x > 20, x, tl.where(w == 1, e, tl.log(w) * (e / tl.where(w == 1, 1, w - 1))))


@triton.jit
def _steps(delta, bias, token, length, SOFTPLUS: tl.constexpr):
    """Step sizes of the tokens of a channel; 0 outside of the sequence, which leaves the state unchanged."""
    mask = (token >= 0) & (token < length)
    dt = tl.load(delta + token, mask, 0) + bias
    return tl.where(mask, _softplus(dt) if SOFTPLUS else dt, 0)


@triton.jit
def _channel(channels, groups, states, length):
    """Channel and row of this program, and the offsets of its row in ``(B, D, L)`` and group in ``(B, G, N, L)``."""
    row = tl.program_id(0).to(tl.int64)
    channel = row % channels
    group = row // channels * groups + channel // (channels // groups)
    return channel, row, row * length, group * states * length


@triton.jit
def _forward(
    u, delta, A, B, C, D, bias, y, state, starts, channels, groups, states, length,
    N: tl.constexpr, T: tl.constexpr, SKIP: tl.constexpr, BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
    STARTS: tl.constexpr,
):  # fmt: skip
    """Store ``y`` and the last state; with STARTS, store only the state before each tile."""
    channel, row, sequence, matrix = _channel(channels, groups, states, length)
    u, delta, y, B, C = u + sequence, delta + sequence, y + sequence, B + matrix, C + matrix
    n, t = tl.arange(0, N), tl.arange(0, T)
    a = tl.load(A + channel * states + n, n < states, 0)
    shift = tl.load(bias + channel) if BIAS else 0
    carry = tl.zeros([N], tl.float64)
    for start in range(0, length, T):
        if STARTS:
            tl.store(starts + (row * tl.cdiv(length, T) + start // T) * N + n, carry)
        token = start + t
        place = n[:, None] * length + token[None, :]
        mask = (n[:, None] < states) & (token[None, :] < length)
        dt, inputs = _steps(delta, shift, token, length, SOFTPLUS), tl.load(u + token, token < length, 0)
        x = dt[None, :] * a[:, None]
        total, h = tl.associative_scan((x, (dt * inputs)[None, :] * tl.load(B + place, mask, 0)), 1, _combine)
        if not STARTS:
            full = h + tl.exp(total) * carry.to(h.dtype)[:, None]
            out = tl.sum(full * tl.load(C + place, mask, 0), 0)
            if SKIP:
                out += tl.load(D + channel) * inputs
            tl.store(y + token, out, token < length)
        last = t[None, :] == T - 1
        carry = carry * tl.exp(tl.sum(x.to(tl.float64), 1)) + tl.sum(tl.where(last, h, 0), 1)
    if not STARTS:
        tl.store(state + row * states + n, carry, n < states)


@triton.jit
def _backward(
    dy, dstate, u, delta, A, B, C, D, bias, starts, du, ddelta, dA, dB, dC, channels, groups, states, length,
    N: tl.constexpr, T: tl.constexpr, SKIP: tl.constexpr, BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """Store the gradients, from the last tile to the first: of A for each image, of B and C by atomic additions."""
    channel, row, sequence, matrix = _channel(channels, groups, states, length)
    u, delta, dy, du, ddelta = u + sequence, delta + sequence, dy + sequence, du + sequence, ddelta + sequence
    B, C, dB, dC = B + matrix, C + matrix, dB + matrix, dC + matrix
    n, t = tl.arange(0, N), tl.arange(0, T)
    a = tl.load(A + channel * states + n, n < states, 0)
    shift = tl.load(bias + channel) if BIAS else 0
    carry = tl.load(dstate + row * states + n, n < states, 0).to(tl.float64)
    sum_a = tl.zeros([N], tl.float64)
    tiles = tl.cdiv(length, T)
    for index in range(0, tiles):
        tile = tiles - 1 - index
        token = tile * T + t
        place = n[:, None] * length + token[None, :]
        mask = (n[:, None] < states) & (token[None, :] < length)
        dt, inputs = _steps(delta, shift, token, length, SOFTPLUS), tl.load(u + token, token < length, 0)
        b, c = tl.load(B + place, mask, 0), tl.load(C + place, mask, 0)
        slope = tl.load(dy + token, token < length, 0)

        # States before each token: the scan over the tokens one earlier, from the state before the tile.
        earlier = token - 1
        in_tile = t > 0
        dt_earlier = tl.where(in_tile, _steps(delta, shift, earlier, length, SOFTPLUS), 0)
        gain_earlier = dt_earlier * tl.load(u + earlier, in_tile & (earlier < length), 0)
        b_earlier = tl.load(B + place - 1, (n[:, None] < states) & (in_tile & (earlier < length))[None, :], 0)
        total, before = tl.associative_scan(
            (dt_earlier[None, :] * a[:, None], gain_earlier[None, :] * b_earlier), 1, _combine
        )
        before += tl.exp(total) * tl.load(starts + (row * tiles + tile) * N + n).to(before.dtype)[:, None]
        decay = tl.exp(dt[None, :] * a[:, None])
        h = decay * before + (dt * inputs)[None, :] * b

        # Gradients of the states: the same scan in reverse, with the decay towards the next token.
        x_later = _steps(delta, shift, token + 1, length, SOFTPLUS)[None, :] * a[:, None]
        total, dh = tl.associative_scan((x_later, slope[None, :] * c), 1, _combine, reverse=True)
        first = tl.sum(tl.where(t[None, :] == 0, dh, 0), 1)
        dh += tl.exp(total) * carry.to(dh.dtype)[:, None]
        carry = carry * tl.exp(tl.sum(x_later.to(tl.float64), 1)) + first

        tl.atomic_add(dB + place, dh * (dt * inputs)[None, :], mask)
        tl.atomic_add(dC + place, h * slope[None, :], mask)
        exponent = dh * decay * before
        sum_a += tl.sum(exponent * dt[None, :], 1)
        dgain = tl.sum(dh * b, 0)
        dinputs = dgain * dt
        if SKIP:
            dinputs += tl.load(D + channel) * slope
        ddt = dgain * inputs + tl.sum(exponent * a[:, None], 0)
        if SOFTPLUS:
            raw = tl.load(delta + token, token < length, 0) + shift
            ddt *= 1 / (1 + tl.exp(-raw))
        tl.store(du + token, dinputs, token < length)
        tl.store(ddelta + token, ddt, token < length)
    tl.store(dA + row * states + n, sum_a, n < states)


def forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None, softplus: bool
) -> tuple[Tensor, Tensor]:
    """Return ``y`` ``(B, D, L)`` and the last state ``(B, D, N)`` for float32 or float64 tensors."""
    tensors, sizes, options = _launch_arguments(u, delta, A, B, C, D, bias, softplus)
    y, state = u.new_empty(u.shape), u.new_empty(u.shape[0], *A.shape)
    if rows := u.shape[0] * u.shape[1]:
        with torch.cuda.device_of(u):
            _launch(_forward, rows)(*tensors, y, state, y, *sizes, **options, STARTS=False)
    return y, state


def backward(
    dy: Tensor,
    dstate: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of u, delta, A, B and C, given those of ``y`` and of the last state."""
    tensors, sizes, options = _launch_arguments(u, delta, A, B, C, D, bias, softplus)
    rows, tiles = u.shape[0] * u.shape[1], triton.cdiv(u.shape[2], options["T"])
    du, ddelta, dA = u.new_empty(u.shape), u.new_empty(u.shape), u.new_empty(u.shape[0], *A.shape)
    dB, dC = u.new_zeros(B.shape), u.new_zeros(C.shape)
    starts = u.new_empty(rows, tiles, options["N"], dtype=torch.float64)
    if rows:
        with torch.cuda.device_of(u):
            _launch(_forward, rows)(*tensors, du, dA, starts, *sizes, **options, STARTS=True)
            _launch(_backward, rows)(
                dy.contiguous(), dstate.contiguous(), *tensors, starts, du, ddelta, dA, dB, dC, *sizes, **options
            )
    return du, ddelta, dA.sum(0), dB, dC


def _launch(kernel: Any, programs: int) -> Any:
    return partial(kernel[(programs,)], enable_fp_fusion=True)  # explicit, because Triton's default will change


def _launch_arguments(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None, softplus: bool
) -> tuple[list[Tensor], tuple[int, int, int, int], dict[str, int | bool]]:
    """Return contiguous tensors (``u`` in place of a missing one), sizes, and the constants to compile with."""
    tensors = [(u if tensor is None else tensor).contiguous() for tensor in (u, delta, A, B, C, D, bias)]
    N = triton.next_power_of_2(A.shape[1])
    T = min(max(ELEMENTS // N, 16), triton.next_power_of_2(u.shape[2]))
    options = {"N": N, "T": T, "SKIP": D is not None, "BIAS": bias is not None, "SOFTPLUS": softplus}
    return tensors, (u.shape[1], B.shape[1], A.shape[1], u.shape[2]), options
