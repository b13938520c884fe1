"""How close a picture is to the true one: PSNR and SSIM as super-resolution is compared.

Both are taken on the luma of the rounded 8-bit picture, and without a border of as many pixels as the scale. Grey
images count as RGB ones with three equal channels, as in all tables since 2017: luma spans 219 of 255 levels, which is
worth 1.32 dB beside a native grey.
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
    """Four digits; null where images are equal, for JSON knows no infinity."""
    return round(decibels, 4) if math.isfinite(decibels) else None


def ssim(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Structural similarity of two ``(H, W)`` arrays on the 0..255 scale.

    Gaussian window of 11 x 11 with sigma 1.5, where it lies wholly inside; the population's covariances.

    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004.

    Raises:
        InputError: smaller than the window.
    """
    if min(a.shape) < _WINDOW:
        raise InputError(f"SSIM needs {_WINDOW} x {_WINDOW} pixels, these are {a.shape[1]}x{a.shape[0]} (W x H)")
    mean_a, mean_b = _blurred(a), _blurred(b)
    var_a, var_b = _blurred(a * a) - mean_a**2, _blurred(b * b) - mean_b**2
    covariance = _blurred(a * b) - mean_a * mean_b
    top = (2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)
    return float((top / ((mean_a**2 + mean_b**2 + _C1) * (var_a + var_b + _C2))).mean())


def _blurred(x: NDArray[np.float64]) -> NDArray[np.float64]:
    taps = np.exp(-((np.arange(_WINDOW) - _WINDOW // 2) ** 2) / (2 * _SIGMA**2))
    taps /= taps.sum()
    for axis in (0, 1):
        length = x.shape[axis] - _WINDOW + 1
        slices = (np.take(x, range(start, start + length), axis) for start in range(_WINDOW))
        x = sum((tap * part for tap, part in zip(taps, slices, strict=True)), np.zeros(()))
    return x


def fidelity(found: NDArray[np.uint8], true: NDArray[np.uint8], border: int) -> tuple[float, float]:
    """PSNR in dB and SSIM of the luma of two ``(H, W, 3)`` pictures, ``border`` pixels left out at each side.

    Raises:
        InputError: of different sizes, or too small.
    """
    if found.shape != true.shape:
        raise InputError(f"pictures of {found.shape} and {true.shape} cannot be compared")
    inside = (slice(border, found.shape[0] - border), slice(border, found.shape[1] - border))
    a, b = luma(found[inside]), luma(true[inside])
    return psnr(a, b), ssim(a, b)


@dataclass(frozen=True)
class UpscaleScores:
    """Means over images.

    Attributes:
        images: how many.
        psnr: in dB.
        ssim: 0..1.
    """

    images: int
    psnr: float
    ssim: float

    @property
    def headline(self) -> tuple[str, float]:
        return "psnr", self.psnr

    def to_dict(self) -> dict[str, Any]:
        return {"psnr": for_json(self.psnr), "ssim": round(self.ssim, 6)}
