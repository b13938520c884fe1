"""The selective scan in plain torch: as a loop, in parallel, and in chunks.

All three compute ``h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t`` and ``y_t = C_t . h_t`` in the dtype of their inputs:
``u`` and ``dt`` ``(B, D, L)``, ``A`` ``(D, N)``, ``B`` and ``C`` ``(B, G, N, L)``. They return ``y`` ``(B, D, L)`` and
the last state ``(B, D, N)``.

The last two combine spans of tokens. They store the sum of the exponents of a span, not the product of its decays. A
decay close to 1 loses the step size to rounding, and the product of 65,536 such decays would be wrong.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 16  #: tokens of a chunk, which `chunked` processes one by one, in all chunks of a segment at once
SEGMENT = 1024  #: tokens for which `chunked` holds all N states in memory at once, a multiple of CHUNK
LONGEST = 2**16  #: most tokens of an exported graph of dynamic length


def loop(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Scan token by token: the definition, slow, which the other implementations are tested against."""
    batch, channels, length = u.shape
    groups = B.shape[1]
    decay = torch.exp(dt[..., None] * A[:, None, :])  # (B, D, L, N)
    gain = (dt * u)[..., None] * B.repeat_interleave(channels // groups, 1).transpose(-2, -1)
    readout = C.repeat_interleave(channels // groups, 1)
    h = u.new_zeros(batch, channels, A.shape[1])
    outputs = []
    for t in range(length):
        h = decay[:, :, t] * h + gain[:, :, t]
        outputs.append((h * readout[..., t]).sum(-1))
    return torch.stack(outputs, -1), h


def parallel(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Scan all tokens at once in ``log2 L`` passes of standard operations (Hillis and Steele, 1986); for export.

    A graph of dynamic length has the passes for ``LONGEST`` tokens and fails on more.
    """
    x, h, readout = _expand(u, dt, A, B, C)
    h = _double_spans(x, h)[1] if isinstance(u.shape[-1], int) else _double_spans_dynamic(x, h)
    return _read_out(h, readout), h[-1].flatten(1, 2)


def chunked(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Scan segment by segment; without gradients, memory beyond inputs and outputs does not grow with the length."""
    batch, channels, length = u.shape
    exact = u.dtype if u.device.type == "mps" else torch.float64  # mps has no float64
    state = u.new_zeros(batch, B.shape[1], channels // B.shape[1], A.shape[1], dtype=exact)
    outputs = []
    for start in range(0, length, SEGMENT):
        part = slice(start, start + SEGMENT)
        x, h, readout = _expand(u[..., part], dt[..., part], A, B[..., part], C[..., part])
        h, state = _scan_chunks(x, h, state)
        outputs.append(_read_out(h, readout))
    return torch.cat(outputs, -1), state.flatten(1, 2).to(u.dtype)


def _expand(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return exponents and inputs of the recurrence, ``(L, B, G, D / G, N)``, and C, ``(L, B, G, 1, N)``.

    Tokens come first, so that spans are contiguous.
    """
    groups = B.shape[1]
    u, dt = (v.unflatten(1, (groups, -1)).permute(3, 0, 1, 2).contiguous()[..., None] for v in (u, dt))
    B, C = (v.permute(3, 0, 1, 2).contiguous()[..., None, :] for v in (B, C))
    return dt * A.unflatten(0, (groups, -1)), dt * u * B, C


def _read_out(h: Tensor, readout: Tensor) -> Tensor:
    """Return ``y`` ``(B, D, L)`` from states ``(L, B, G, D / G, N)``."""
    return (h @ readout.transpose(-2, -1)).squeeze(-1).permute(1, 2, 3, 0).flatten(1, 2)


def _double_spans(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Return sums of exponents and states up to each token, by spans that double in each pass; tokens come first."""
    span = 1
    while span < x.shape[0]:
        h = torch.cat([h[:span], h[span:] + x[span:].exp() * h[:-span]])
        x = torch.cat([x[:span], x[span:] + x[:-span]])
        span *= 2
    return x, h


def _double_spans_dynamic(x: Tensor, h: Tensor) -> Tensor:
    """Return the states up to each token, in a graph that does not depend on the number of tokens."""
    length = x.shape[0]
    # These zeros broadcast to at most LONGEST tokens, so that a longer input fails. An ONNX file has no other way to
    # state its limit.
    h = h + h.new_zeros(()).expand(LONGEST)[:length].reshape(-1, *(1 for _ in h.shape[1:]))
    span = 1
    while span < LONGEST:
        before, earlier = (F.pad(v, (0, 0) * (v.dim() - 1) + (span, 0))[:length] for v in (h, x))
        h, x = h + x.exp() * before, x + earlier
        span *= 2
    return h


def _scan_tokens(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Return sums of exponents and states up to each token, token by token."""
    decay, states, sums = x.exp(), [h[0]], [x[0]]
    for t in range(1, x.shape[0]):
        states.append(torch.addcmul(h[t], decay[t], states[-1]))
        sums.append(sums[-1] + x[t])
    return torch.stack(sums), torch.stack(states)


def _scan_chunks(x: Tensor, h: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Return the states after each token, and ``state`` after the last token in its own precision."""
    length = x.shape[0]
    # Padding has exponents and inputs of 0, so it leaves the state unchanged.
    x, h = (F.pad(v, (0, 0) * (v.dim() - 1) + (0, -length % CHUNK)) for v in (x, h))
    x, h = _scan_tokens(*(v.unflatten(0, (-1, CHUNK)).transpose(0, 1) for v in (x, h)))
    total, ends = _double_spans(x[-1], h[-1])  # at the end of each chunk
    before = state.to(h.dtype)[None]
    h = torch.addcmul(h, x.exp(), torch.cat([before, torch.addcmul(ends, total.exp(), before)[:-1]]))
    return h.transpose(0, 1).flatten(0, 1)[:length], total[-1].to(state.dtype).exp() * state + ends[-1]
