"""Resampling with one cubic kernel under three conventions of where pixels lie."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError


def bicubic_downscale(image: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """Shrink ``(H, W, C)`` to ``(H / scale, W / scale, C)`` as the field's benchmarks do.

    Cubic kernel with a = -0.5 stretched by the scale (antialiasing), edges mirrored, float64, rounded once: MATLAB's
    ``imresize``, with which Set5 to Urban100 are shrunk. Other libraries' "bicubic" differ, some by 7 dB.

    Source: Keys, "Cubic convolution interpolation for digital image processing", 1981.

    Args:
        image: uint8, its sides divisible by ``scale``.
        scale: whole number.

    Raises:
        InputError: the sides do not divide.
    """
    if any(side % scale for side in image.shape[:2]):
        raise InputError(f"image of {image.shape[1]}x{image.shape[0]} (W x H): its sides do not divide by {scale}")
    if scale == 1:
        return image
    out = image.astype(np.float64)
    for axis in (0, 1):
        out = np.moveaxis(_shrunk(np.moveaxis(out, axis, 0), scale), 0, axis)
    return np.clip(np.floor(out + 0.5), 0, 255).astype(np.uint8)


def _shrunk(rows: NDArray[np.float64], scale: int) -> NDArray[np.float64]:
    """Shrink the first axis. Every output pixel sees the same taps, since the scale is whole."""
    offsets = np.arange(-2 * scale, 3 * scale)
    taps = _cubic(np.abs(offsets - (scale - 1) / 2) / scale)
    taps /= taps.sum()
    length = len(rows)
    starts = np.arange(0, length, scale)
    out = np.zeros((len(starts), *rows.shape[1:]))
    for offset, tap in zip(offsets, taps, strict=True):
        out += tap * rows[_mirrored(starts + offset, length)]
    return out


def interpolated(image: NDArray[np.floating], scale: int, kernel: str = "bicubic") -> NDArray[np.float64]:
    """Enlarge ``(H, W, C)`` by a whole number as MATLAB's ``imresize`` does, edges mirrored; nothing is rounded.

    Args:
        image: any range.
        scale: whole number.
        kernel: "bicubic" (a = -0.5) or "lanczos" (three lobes).
    """
    out = image.astype(np.float64)
    for axis in (0, 1):
        out = np.moveaxis(_enlarged(np.moveaxis(out, axis, 0), scale, kernel), 0, axis)
    return out


def _enlarged(rows: NDArray[np.float64], scale: int, kernel: str) -> NDArray[np.float64]:
    offsets = np.arange(-3, 4)
    phases = (np.arange(scale) + 0.5) / scale - 0.5
    distance = np.abs(phases[:, None] - offsets)
    if kernel == "bicubic":
        taps = _cubic(distance)
    else:
        taps = np.where(distance < 3, np.sinc(distance) * np.sinc(distance / 3), 0.0)
    taps /= taps.sum(1, keepdims=True)
    length = len(rows)
    out = np.zeros((length, scale, *rows.shape[1:]))
    for offset, column in zip(offsets, taps.T, strict=True):
        shifted = rows[_mirrored(np.arange(length) + offset, length)]
        out += column.reshape(scale, *[1] * (rows.ndim - 1)) * shifted[:, None]
    return out.reshape(length * scale, *rows.shape[1:])


def _mirrored(index: NDArray[np.intp], length: int) -> NDArray[np.intp]:
    """Where an index outside ``length`` falls when the edge pixel is repeated once, then the one before, ..."""
    place = index % (2 * length)
    return np.where(place < length, place, 2 * length - 1 - place)


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' kernel with a = -0.5."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return np.where(distance <= 1, near, np.where(distance <= 2, far, 0.0))


def resize_cubic(array: NDArray, length: int, axis: int) -> NDArray[np.float32]:
    """Resize one axis to ``length`` by :func:`cubic_samples` at the centres of the new pixels."""
    return cubic_samples(array, (np.arange(length) + 0.5) * (array.shape[axis] / length) - 0.5, axis)


def cubic_samples(array: NDArray, positions: NDArray[np.float64], axis: int) -> NDArray[np.float32]:
    """Values between the samples of one axis by cubic convolution with a = -0.75, edges repeated, no smoothing.

    That is OpenCV's INTER_CUBIC and torch's "bicubic" without ``antialias``; Pillow's has a = -0.5 and smooths.

    Source: Keys, "Cubic convolution interpolation for digital image processing", 1981.
    """
    first = np.floor(positions).astype(np.intp) - 1
    out = np.zeros((*array.shape[:axis], len(positions), *array.shape[axis + 1 :]), np.float32)
    for index in (first + tap for tap in range(4)):
        weight = _cubic_kernel(np.abs(positions - index)).astype(np.float32)
        weight = weight.reshape(-1, *[1] * (array.ndim - axis - 1))
        out += np.take(array, np.clip(index, 0, array.shape[axis] - 1), axis) * weight
    return out


def _cubic_kernel(distance: NDArray[np.float64], a: float = -0.75) -> NDArray[np.float64]:
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, far)
