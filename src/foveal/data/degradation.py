"""Degrade images for super-resolution and restoration: blur, downscaling, noise, JPEG.

The order is that of a camera, and of the degradation model of the literature (Elad and Feuer, "Restoration of a single
superresolution image from several blurred, noisy and undersampled measured images", 1997).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from ..images.resampling import bicubic_downscale


def degraded(
    large: NDArray[np.uint8], scale: int, ranges: Mapping[str, tuple[float, float]], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Make a small, degraded image of ``large``: blur it, downscale it by ``scale``, add noise, compress it.

    Args:
        large: ``(H, W, 3)`` uint8, its sides divisible by ``scale``.
        scale: whole number; 1 keeps the size.
        ranges: ranges to draw from: "blur", the standard deviation of a Gaussian in pixels of ``large``; "noise", the
            standard deviation of Gaussian noise in levels of 0..255; "jpeg", the quality, 1..100. A degradation without
            a range is not applied.
        rng: random generator for the draws.

    Returns:
        ``(H / scale, W / scale, 3)`` uint8.
    """
    image = large
    if "blur" in ranges:
        image = _to_uint8(_blur(image, rng.uniform(*ranges["blur"])))
    if scale > 1:
        image = bicubic_downscale(image, scale)
    if "noise" in ranges:
        sigma = rng.uniform(*ranges["noise"])
        image = _to_uint8(image + sigma * rng.standard_normal(image.shape))
    if "jpeg" in ranges:
        low, high = ranges["jpeg"]
        quality = int(rng.integers(round(low), round(high) + 1))
        data = simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality, "RGB", "420")
        image = simplejpeg.decode_jpeg(data, "RGB")
    return image


def _blur(image: NDArray[np.uint8], sigma: float) -> NDArray[np.float64]:
    """Gaussian blur with mirrored edges."""
    radius = int(np.ceil(3 * sigma))
    taps = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2)) if radius else np.ones(1)
    taps /= taps.sum()
    out = image.astype(np.float64)
    for axis in (0, 1):
        margin = [(0, 0)] * 3
        margin[axis] = (radius, radius)
        padded = np.pad(out, margin, mode="symmetric")
        length = out.shape[axis]
        out = sum(
            (tap * padded.take(range(start, start + length), axis) for start, tap in enumerate(taps)), np.zeros(())
        )
    return out


def _to_uint8(image: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
