"""PSNR and SSIM by the protocol that super-resolution is compared with.

Both are computed on the luma of the rounded 8-bit picture, without a border of as many pixels as the scale. Grey images
count as RGB images with three equal channels, as in all tables since 2017. Luma spans 219 of 255 levels, which gives
1.32 dB more than the native grey levels would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

_LUMA = np.array([65.481, 128.553, 24.966]) / 255  # ITU-R BT.601, studio range, as MATLAB's rgb2ycbcr
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def luma(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Y of ``(H, W, 3)`` RGB, 16..235, not rounded: ``16 + (65.481 R + 128.553 G + 24.966 B) / 255``."""
    return 16 + image.astype(np.float64) @ _LUMA


def psnr(a: NDArray, b: NDArray) -> float:
    """Peak signal-to-noise ratio of two arrays of one shape on the 0..255 scale, in dB; infinite where equal."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf


def for_json(decibels: float) -> float | None:
    """Decibels rounded to 4 decimal places; ``None`` for equal images, because JSON has no infinity."""
    return round(decibels, 4) if math.isfinite(decibels) else None


def ssim(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Structural similarity of two ``(H, W)`` arrays on the 0..255 scale.

    The window is a Gaussian of 11 x 11 pixels with sigma 1.5, at all positions where it lies completely inside. The
    covariances are those of a population (divided by n, not n - 1).

    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004.

    Raises:
        InputError: the arrays are smaller than the window.
    """
    if min(a.shape) < _WINDOW:
        raise InputError(f"SSIM needs {_WINDOW} x {_WINDOW} pixels, these are {a.shape[1]}x{a.shape[0]} (W x H)")
    mean_a, mean_b = _blur(a), _blur(b)
    var_a, var_b = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    top = (2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)
    return float((top / ((mean_a**2 + mean_b**2 + _C1) * (var_a + var_b + _C2))).mean())


def _blur(x: NDArray[np.float64]) -> NDArray[np.float64]:
    taps = np.exp(-((np.arange(_WINDOW) - _WINDOW // 2) ** 2) / (2 * _SIGMA**2))
    taps /= taps.sum()
    for axis in (0, 1):
        length = x.shape[axis] - _WINDOW + 1
        slices = (np.take(x, range(start, start + length), axis) for start in range(_WINDOW))
        x = sum((tap * part for tap, part in zip(taps, slices, strict=True)), np.zeros(()))
    return x


def fidelity(image: NDArray[np.uint8], reference: NDArray[np.uint8], border: int) -> tuple[float, float]:
    """PSNR in dB and SSIM of the luma of two ``(H, W, 3)`` RGB pictures, without ``border`` pixels at each side.

    Raises:
        InputError: the pictures differ in size, or are smaller than the window of SSIM.
    """
    if image.shape != reference.shape:
        raise InputError(f"pictures of {image.shape} and {reference.shape} cannot be compared: give two of one size")
    inside = (slice(border, image.shape[0] - border), slice(border, image.shape[1] - border))
    a, b = luma(image[inside]), luma(reference[inside])
    return psnr(a, b), ssim(a, b)


@dataclass(frozen=True)
class UpscaleScores:
    """Means over images.

    Attributes:
        images: number of images.
        psnr: peak signal-to-noise ratio in dB.
        ssim: structural similarity; 1 for equal images.
    """

    images: int
    psnr: float
    ssim: float

    @property
    def headline(self) -> tuple[str, float]:
        """The metric that training selects checkpoints by."""
        return "psnr", self.psnr

    def to_dict(self) -> dict[str, Any]:
        """Both scores, ready for JSON."""
        return {"psnr": for_json(self.psnr), "ssim": round(self.ssim, 6)}
