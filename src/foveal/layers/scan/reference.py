"""The selective scan in plain torch: as a loop, in parallel, and in chunks.

All three compute ``h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t`` and ``y_t = C_t . h_t`` in the dtype they are given, from
``u`` and ``dt`` ``(B, D, L)``, ``A`` ``(D, N)``, ``B`` and ``C`` ``(B, G, N, L)``; they return ``y`` ``(B, D, L)`` and
the last state ``(B, D, N)``.

The last two combine spans of tokens. A span keeps the sum of its exponents, not the product of its decays: a decay
next to 1 loses the step size to rounding, and 65,536 of them lose the result.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 16  #: tokens that the chunked form goes through one by one, in all chunks of a segment at once
SEGMENT = 1024  #: tokens that the chunked form holds expanded by the N states, a multiple of CHUNK
LONGEST = 2**16  #: tokens that an exported graph of dynamic length takes


def loop(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, token by token: the yardstick of every other form, slow."""
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
    """All tokens at once in ``log2 L`` passes of standard operations (Hillis and Steele, 1986): this form exports.

    A graph of dynamic length has the passes for ``LONGEST`` tokens; it fails on more.
    """
    x, h, readout = _expanded(u, dt, A, B, C)
    h = _doubled(x, h)[1] if isinstance(u.shape[-1], int) else _doubled_any(x, h)
    return _read(h, readout), h[-1].flatten(1, 2)


def chunked(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Segment by segment, so that memory beyond inputs and outputs does not grow with the length (without gradient)."""
    batch, channels, length = u.shape
    exact = u.dtype if u.device.type == "mps" else torch.float64  # mps has none
    state = u.new_zeros(batch, B.shape[1], channels // B.shape[1], A.shape[1], dtype=exact)
    outputs = []
    for start in range(0, length, SEGMENT):
        part = slice(start, start + SEGMENT)
        x, h, readout = _expanded(u[..., part], dt[..., part], A, B[..., part], C[..., part])
        h, state = _in_chunks(x, h, state)
        outputs.append(_read(h, readout))
    return torch.cat(outputs, -1), state.flatten(1, 2).to(u.dtype)


def _expanded(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Exponents and inputs of the recurrence ``(L, B, G, D / G, N)``, tokens first so that spans are contiguous; C."""
    groups = B.shape[1]
    u, dt = (v.unflatten(1, (groups, -1)).permute(3, 0, 1, 2).contiguous()[..., None] for v in (u, dt))
    B, C = (v.permute(3, 0, 1, 2).contiguous()[..., None, :] for v in (B, C))
    return dt * A.unflatten(0, (groups, -1)), dt * u * B, C


def _read(h: Tensor, readout: Tensor) -> Tensor:
    """``y`` ``(B, D, L)`` of states ``(L, B, G, D / G, N)``."""
    return (h @ readout.transpose(-2, -1)).squeeze(-1).permute(1, 2, 3, 0).flatten(1, 2)


def _doubled(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """States and sums of exponents up to each token, of spans that double: tokens first."""
    span = 1
    while span < x.shape[0]:
        h = torch.cat([h[:span], h[span:] + x[span:].exp() * h[:-span]])
        x = torch.cat([x[:span], x[span:] + x[:-span]])
        span *= 2
    return x, h


def _doubled_any(x: Tensor, h: Tensor) -> Tensor:
    """States up to each token in a graph that does not depend on their number."""
    length = x.shape[0]
    # Zeros, which do not broadcast to more than LONGEST tokens: an ONNX file cannot state its limit otherwise.
    h = h + h.new_zeros(()).expand(LONGEST)[:length].reshape(-1, *(1 for _ in h.shape[1:]))
    span = 1
    while span < LONGEST:
        before, earlier = (F.pad(v, (0, 0) * (v.dim() - 1) + (span, 0))[:length] for v in (h, x))
        h, x = h + x.exp() * before, x + earlier
        span *= 2
    return h


def _stepped(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The same token by token."""
    decay, states, sums = x.exp(), [h[0]], [x[0]]
    for t in range(1, x.shape[0]):
        states.append(torch.addcmul(h[t], decay[t], states[-1]))
        sums.append(sums[-1] + x[t])
    return torch.stack(sums), torch.stack(states)


def _in_chunks(x: Tensor, h: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """States after each token, and ``state`` after the last, in its own precision."""
    length = x.shape[0]
    # Padding leaves a state as it is: its exponents and inputs are 0.
    x, h = (F.pad(v, (0, 0) * (v.dim() - 1) + (0, -length % CHUNK)) for v in (x, h))
    x, h = _stepped(*(v.unflatten(0, (-1, CHUNK)).transpose(0, 1) for v in (x, h)))
    total, ends = _doubled(x[-1], h[-1])  # of chunks
    before = state.to(h.dtype)[None]
    h = torch.addcmul(h, x.exp(), torch.cat([before, torch.addcmul(ends, total.exp(), before)[:-1]]))
    return h.transpose(0, 1).flatten(0, 1)[:length], total[-1].to(state.dtype).exp() * state + ends[-1]
