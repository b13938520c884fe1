"""Resampling by a fixed factor, written so that every exporter and runtime computes the same numbers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from .leaf import leaf


def _cubic(t: Tensor, a: float = -0.75) -> Tensor:
    """Cubic convolution kernel of R. Keys at distance ``t``; a = -0.75 is the bicubic of torch and OpenCV."""
    t = t.abs()
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return torch.where(t <= 1, near, torch.where(t < 2, far, torch.zeros_like(t)))


def _taps(factor: int, a: float) -> Tensor:
    """Weights of the five nearest input pixels for each of the ``factor`` output pixels of an input pixel.

    Returns:
        ``(factor, 5)`` in float64.
    """
    phase = (torch.arange(factor, dtype=torch.float64) + 0.5) / factor - 0.5  # in input pixels
    return _cubic(phase[:, None] - torch.arange(-2, 3, dtype=torch.float64), a)


class BicubicUpsample(nn.Module):
    """Upsample maps by an integer factor exactly as ``F.interpolate(mode="bicubic", align_corners=False)`` does.

    ``(B, C, H, W) -> (B, C, factor * H, factor * W)``.

    Bicubic interpolation at a fixed factor is a convolution: replicate-pad by 2, one 5x5 kernel per output phase, pixel
    shuffle. Core ML converts this form and XNNPACK runs it, where the bicubic operator itself fails or is decomposed.

    Args:
        factor: integer factor, at least 1 (1 returns the input).
        a: parameter of the kernel: -0.5 is the bicubic of MATLAB and Pillow.
    """

    taps: Tensor
    reach = 2  #: input pixels on each side of a pixel that its interpolation reads

    def __init__(self, factor: int, a: float = -0.75) -> None:
        super().__init__()
        self.factor, self.a = factor, a
        # For factors 2, 4 and 8 the one-dimensional weights are exact in float32 but their products are not, so the
        # two-dimensional kernel is computed in each forward pass.
        self.register_buffer("taps", _taps(factor, a).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.factor == 1:
            return x
        planes = F.pad(x.flatten(0, 1).unsqueeze(1), (self.reach,) * 4, mode="replicate")  # (B*C, 1, H + 4, W + 4)
        return self._enlarge_planes(planes, x)

    def enlarge(self, x: Tensor) -> Tensor:
        """Upsample maps that are padded already: ``(B, C, H + 4, W + 4) -> (B, C, factor * H, factor * W)``."""
        if self.factor == 1:
            return x[..., self.reach : -self.reach, self.reach : -self.reach]
        return self._enlarge_planes(x.flatten(0, 1).unsqueeze(1), x)

    def _enlarge_planes(self, planes: Tensor, x: Tensor) -> Tensor:
        phases = F.conv2d(planes, _kernel(x, self.taps, self.factor, self.a))  # (B*C, factor^2, H, W)
        return F.pixel_shuffle(phases, self.factor).unflatten(0, x.shape[:2]).squeeze(2)


@leaf
def _kernel(x: Tensor, taps: Tensor, factor: int, a: float) -> Tensor:
    """Return the kernel of each phase in the dtype of ``x``, ``(factor^2, 1, 5, 5)``."""
    line = _taps(factor, a).to(x.device) if x.dtype == torch.float64 else taps.to(x.dtype)
    return (line[:, None, :, None] * line[None, :, None, :]).reshape(-1, 1, 5, 5)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Replicate-pad ``(B, C, H, W)`` at the right and bottom until both sides are multiples of ``multiple``."""
    h, w = x.shape[-2:]
    # Not -h % multiple: torch.export must infer that every stride divides the padded size, and ONNX rounds -h // n to
    # 0.
    right, bottom = ceil_div(w, multiple) * multiple - w, ceil_div(h, multiple) * multiple - h
    return F.pad(x, (0, right, 0, bottom), mode="replicate")


@leaf
def crop(x: Tensor, height: int, width: int) -> Tensor:
    """Return the first ``height`` rows and ``width`` columns of ``(B, C, H, W)``.

    In an exported graph of dynamic size this is an index selection instead of a slice: the tracer cannot prove that a
    slice with a symbolic end lies inside the tensor, and would restrict the sizes to multiples of the stride.
    """
    if not torch.compiler.is_exporting():
        return x[..., :height, :width]
    if isinstance(height, int) and isinstance(width, int):  # a slice of everything is an alias, which Core ML lacks
        return x if x.shape[-2:] == (height, width) else x[..., :height, :width]
    rows, columns = (torch.arange(side, device=x.device) for side in (height, width))
    return x.index_select(-2, rows).index_select(-1, columns)


def ceil_div(length: int, step: int) -> int:
    """Return ``ceil(length / step)`` of positive integers, in a form that exporters translate correctly."""
    return (length + step - 1) // step


@leaf
def check_min_size(x: Tensor, minimum: int) -> None:
    """Raise InputError where ``x`` is not ``(B, C, H, W)``, or a side is below ``minimum`` pixels."""
    if x.ndim != 4:
        raise InputError(f"images of shape {tuple(x.shape)}: give (B, C, H, W)")
    h, w = x.shape[-2:]
    if h < minimum or w < minimum:
        raise InputError(
            f"image of {h}x{w} (H x W) is smaller than the model's minimum of {minimum}x{minimum}: "
            "enlarge or pad it (the predictor of foveal.load pads it for you)"
        )
