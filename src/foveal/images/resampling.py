"""Resample arrays with the cubic kernel, as MATLAB and as OpenCV do.

"Bicubic" has three conventions in the field. Each uses :func:`cubic_kernel`, with other values of ``a``, of the
kernel's width and of the pixels beyond the edge. In all three, the centre of output pixel ``j`` lies at input position
``(j + 0.5) * input length / output length - 0.5``, where 0 is the centre of the first input pixel:

==================================  =====  ============================  ==========================================
convention                          ``a``  kernel when downscaling       pixels beyond the edge
==================================  =====  ============================  ==========================================
MATLAB ``imresize``                 -0.5   stretched by the scale        mirrored; the edge pixel is repeated once
OpenCV ``INTER_CUBIC`` and torch    -0.75  not stretched, so it aliases  the edge pixel, repeated
``"bicubic"``
Pillow ``BICUBIC`` and torch with   -0.5   stretched by the scale        left out; the other weights are normalised
``antialias=True``
==================================  =====  ============================  ==========================================

This module has the first (:func:`bicubic_downscale` and :func:`interpolated`, for super-resolution) and the second
(:func:`resize_cubic` and :func:`cubic_samples`, for the evaluation protocols). The third is Pillow itself, which
:mod:`foveal.images.preparing` calls. :class:`foveal.layers.resample.BicubicUpsample` is the second as a torch module.

Source of the kernel: Keys, "Cubic convolution interpolation for digital image processing", 1981.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

_MATLAB, _OPENCV = -0.5, -0.75  # the parameter ``a`` of cubic_kernel


def cubic_kernel(distance: NDArray[np.float64], a: float) -> NDArray[np.float64]:
    """Weights of samples at ``distance`` (0 or more, in samples) by Keys' cubic kernel; 0 from a distance of 2 on.

    Args:
        distance: any shape.
        a: slope of the kernel at distance 1; the table at the top of this module says who uses which.
    """
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def bicubic_taps(factor: int, a: float) -> NDArray[np.float64]:
    """Weights of the five nearest pixels for each of the ``factor`` pixels that a pixel becomes: ``(factor, 5)``."""
    phase = (np.arange(factor) + 0.5) / factor - 0.5
    return cubic_kernel(np.abs(phase[:, None] - np.arange(-2, 3)), a)


# ---- MATLAB's convention


def bicubic_downscale(image: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """Downscale ``(H, W, C)`` to ``(H / scale, W / scale, C)`` as MATLAB's ``imresize`` does.

    The low-resolution images of Set5 to Urban100 are made with it. Computed in float64 and rounded once. The "bicubic"
    of other libraries differs, in some cases by 7 dB.

    Args:
        image: uint8, its sides divisible by ``scale``.
        scale: whole number.

    Raises:
        InputError: a side is not divisible by ``scale``.
    """
    if any(side % scale for side in image.shape[:2]):
        raise InputError(
            f"image of {image.shape[1]}x{image.shape[0]} (W x H): its sides do not divide by {scale}; crop it first"
        )
    if scale == 1:
        return image
    out = image.astype(np.float64)
    for axis in (0, 1):
        out = np.moveaxis(_downscale_rows(np.moveaxis(out, axis, 0), scale), 0, axis)
    return np.clip(np.floor(out + 0.5), 0, 255).astype(np.uint8)


def _downscale_rows(rows: NDArray[np.float64], scale: int) -> NDArray[np.float64]:
    """Downscale the first axis. Since the scale is a whole number, all output pixels have the same weights."""
    offsets = np.arange(-2 * scale, 3 * scale)
    weights = cubic_kernel(np.abs(offsets - (scale - 1) / 2) / scale, _MATLAB)
    weights /= weights.sum()
    length = len(rows)
    starts = np.arange(0, length, scale)
    out = np.zeros((len(starts), *rows.shape[1:]))
    for offset, weight in zip(offsets, weights, strict=True):
        out += weight * rows[_mirror(starts + offset, length)]
    return out


def interpolated(image: NDArray[np.floating], scale: int, kernel: str = "bicubic") -> NDArray[np.float64]:
    """Upscale ``(H, W, C)`` by a whole number as MATLAB's ``imresize`` does; the result is not rounded.

    Args:
        image: values of any range.
        scale: whole number.
        kernel: "bicubic" (a = -0.5) or "lanczos" (three lobes).
    """
    out = image.astype(np.float64)
    for axis in (0, 1):
        out = np.moveaxis(_upscale_rows(np.moveaxis(out, axis, 0), scale, kernel), 0, axis)
    return out


def _upscale_rows(rows: NDArray[np.float64], scale: int, kernel: str) -> NDArray[np.float64]:
    """Upscale the first axis: one set of weights for each of the ``scale`` output rows of an input row."""
    offsets = np.arange(-3, 4)
    phases = (np.arange(scale) + 0.5) / scale - 0.5
    distance = np.abs(phases[:, None] - offsets)
    if kernel == "bicubic":
        weights = cubic_kernel(distance, _MATLAB)
    else:
        weights = np.where(distance < 3, np.sinc(distance) * np.sinc(distance / 3), 0.0)
    weights /= weights.sum(1, keepdims=True)
    length = len(rows)
    out = np.zeros((length, scale, *rows.shape[1:]))
    for offset, column in zip(offsets, weights.T, strict=True):
        shifted = rows[_mirror(np.arange(length) + offset, length)]
        out += column.reshape(scale, *[1] * (rows.ndim - 1)) * shifted[:, None]
    return out.reshape(length * scale, *rows.shape[1:])


def _mirror(index: NDArray[np.intp], length: int) -> NDArray[np.intp]:
    """Map indices beyond ``length`` back into it: the edge pixel is repeated once, then follows the one before it."""
    place = index % (2 * length)
    return np.where(place < length, place, 2 * length - 1 - place)


# ---- OpenCV's and torch's convention


def resize_cubic(array: NDArray, length: int, axis: int) -> NDArray[np.float32]:
    """Resize one axis to ``length`` as OpenCV does: :func:`cubic_samples` at the centres of the output pixels."""
    return cubic_samples(array, (np.arange(length) + 0.5) * (array.shape[axis] / length) - 0.5, axis)


def cubic_samples(array: NDArray, positions: NDArray[np.float64], axis: int) -> NDArray[np.float32]:
    """Interpolate along one axis as OpenCV does.

    Args:
        array: any shape.
        positions: where to sample, in samples of the axis; 0 is the centre of the first one.
        axis: it gets the length of ``positions``.
    """
    first = np.floor(positions).astype(np.intp) - 1
    out = np.zeros((*array.shape[:axis], len(positions), *array.shape[axis + 1 :]), np.float32)
    for index in (first + tap for tap in range(4)):
        weight = cubic_kernel(np.abs(positions - index), _OPENCV).astype(np.float32)
        weight = weight.reshape(-1, *[1] * (array.ndim - axis - 1))
        out += np.take(array, np.clip(index, 0, array.shape[axis] - 1), axis) * weight
    return out
