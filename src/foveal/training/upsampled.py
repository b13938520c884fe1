"""Bilinear upsampling of logits to a target's size, and cross entropy on them without the large maps.

On a CPU, ``F.interpolate`` and ``F.cross_entropy`` at full size take longer than a small network with its gradients
(``benchmarks/losses.py``). Bilinear upsampling is a product with one matrix for the rows and one for the columns,
so it is computed by matrix products here, and cross entropy by strips of rows that stay in the cache.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_STRIP = 1 << 17  # values of a strip: several maps of this size stay in the second-level cache


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits ``(B, C, h, w)`` at another size, ``(B, C, H, W)``: ``F.interpolate``, bilinear, corners not aligned."""
    if logits.shape[-2:] == size:
        return logits
    if logits.device.type != "cpu":
        return F.interpolate(logits.contiguous(), size=size, mode="bilinear", align_corners=False)
    rows, columns = _matrices(logits, size)
    with torch.autocast("cpu", enabled=False):
        return rows @ (logits @ columns)


def upsample_to_centres(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Of ``upsample(logits, size)`` the pixels at the centres of the logits' grid, ``(B, C, h, w)``."""
    rows, columns = _matrices(logits, size)
    y, x = centres(logits, size)
    with torch.autocast(logits.device.type, enabled=False):
        return rows[y] @ (logits @ columns[:, x])


def centres(logits: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Rows ``(h,)`` and columns ``(w,)`` of the pixels at the centres of the logits' grid, the later one of two."""
    y, x = (
        (2 * torch.arange(small, device=logits.device) + 1) * large // (2 * small)
        for small, large in zip(logits.shape[-2:], size, strict=True)
    )
    return y, x


def cross_entropy_sum(logits: Tensor, target: Tensor, weights: Tensor, ignore: int) -> Tensor:
    """Sum over pixels of ``-log p`` of the pixel's class after upsampling, times the weight of the class; a scalar.

    Args:
        logits: ``(B, C, h, w)`` on the CPU, float32 or float64.
        target: ``(B, H, W)`` int64.
        weights: one for each id that the target may contain; that of ``ignore`` is 0.
        ignore: the id of pixels that do not count.

    Raises:
        RuntimeError: another id is not below C.
    """
    return _CrossEntropySum.apply(logits, target, weights, ignore)  # pyright: ignore[reportReturnType]


class _CrossEntropySum(torch.autograd.Function):
    """The gradient is computed together with the value: both need the same exponentials."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, weights: Tensor, ignore: int) -> Tensor:
        rows, columns = _matrices(logits, target.shape[-2:])
        step = max(1, _STRIP // (logits.shape[1] * target.shape[-1]))
        total, gradient = logits.new_zeros(()), torch.zeros_like(logits)
        with torch.autocast("cpu", enabled=False):
            for image, ids, slopes in zip(logits, target, gradient, strict=True):
                wide = image @ columns
                wide_slopes = torch.zeros_like(wide)
                for some, strip in zip(rows.split(step), ids.split(step), strict=True):
                    value, slope = _strip(some @ wide, strip, weights, ignore, ctx.needs_input_grad[0])
                    total += value
                    if slope is not None:
                        wide_slopes += some.T @ slope
                slopes.copy_(wide_slopes @ columns.T)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = ctx.saved_tensors
        return gradient * grad, None, None, None


def _strip(logits: Tensor, target: Tensor, weights: Tensor, ignore: int, slope: bool) -> tuple[Tensor, Tensor | None]:
    """Weighted sum of ``-log p`` over a strip ``(C, s, W)``, and its gradient in the memory of the logits."""
    weight = weights[target]
    ids = target.where(target != ignore, 0)[None]
    logits -= logits.amax(0)
    own = logits.gather(0, ids)[0]
    total = logits.exp_().sum(0)
    value = ((total.log() - own) * weight).sum()
    if not slope:
        return value, None
    logits *= weight / total
    return value, logits.scatter_add_(0, ids, -weight[None])


def _matrices(logits: Tensor, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """``(H, h)`` and ``(w, W)``, whose products with logits from the left and from the right upsample them."""
    rows, columns = (_line(small, large) for small, large in zip(logits.shape[-2:], size, strict=True))
    return rows.to(logits), columns.T.to(logits)


@lru_cache(64)
def _line(small: int, large: int) -> Tensor:
    """How much each of ``small`` values counts in each of ``large``, ``(large, small)`` float64."""
    with torch.inference_mode(False):  # a tensor of inference mode could not be used in training later
        shares = torch.eye(small, dtype=torch.float64)[None]
        return F.interpolate(shares, size=large, mode="linear", align_corners=False)[0].T.contiguous()
