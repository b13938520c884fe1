"""Geometric changes of images and masks by an affine map, resampled by Pillow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Matrix = tuple[
    float, float, float, float, float, float
]  #: a, b, c, d, e, f: (x, y) is read at (ax + by + c, dx + ey + f)


def ignored_in(mask: NDArray[Any]) -> int:
    """The id of ignored pixels in a mask: the largest value of its type, uint8 or uint16."""
    return int(np.iinfo(mask.dtype).max)


def change_mask(mask: NDArray[Any], change: Callable[[NDArray[Any], tuple[float, ...]], NDArray[Any]]) -> NDArray[Any]:
    """Apply a geometric change of images to a mask.

    Args:
        mask: ``(H, W)``, or ``(H, W, K)`` for K layers that change alike.
        change: arguments: the layers ``(H, W, K)``, and the value of each outside of the image.

    Returns:
        As many dimensions as ``mask`` has.
    """
    layers = mask[..., None] if mask.ndim == 2 else mask
    changed = change(layers, (ignored_in(mask),) * layers.shape[2])
    return changed[..., 0] if mask.ndim == 2 else changed


def rotation(degrees: float, size: Sequence[int]) -> Matrix:
    """The map that turns an image of (H, W) counterclockwise around its middle."""
    angle = math.radians(degrees)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)  # so that right angles are exact
    return centred((cos, -sin, sin, cos), size)


def centred(linear: tuple[float, float, float, float], size: Sequence[int]) -> Matrix:
    """The map with this linear part that leaves the middle of an image of (H, W) where it is."""
    (a, b, d, e), (y, x) = linear, (size[0] / 2, size[1] / 2)
    return a, b, x - a * x - b * y, d, e, y - d * x - e * y


def affine(image: NDArray[Any], matrix: Matrix, kernel: Image.Resampling, fill: tuple[float, ...]) -> NDArray[Any]:
    """Map an image; the size and the type stay.

    Args:
        image: ``(H, W, C)`` uint8, uint16 or float32.
        matrix: where each pixel is read.
        kernel: nearest, bilinear or bicubic.
        fill: value of each channel outside of the image.
    """
    size, how = (image.shape[1], image.shape[0]), Image.Transform.AFFINE
    if image.dtype == np.uint8 and image.shape[2] == 3:
        colour = tuple(round(value) for value in fill)
        return np.asarray(Image.fromarray(image).transform(size, how, matrix, kernel, fillcolor=colour))
    out = np.empty_like(image)
    for band, value in zip(range(image.shape[2]), fill, strict=True):
        values = np.ascontiguousarray(image[..., band], np.float32)
        part = np.asarray(Image.fromarray(values).transform(size, how, matrix, kernel, fillcolor=value))
        whole = image.dtype.kind == "u"
        out[..., band] = np.rint(part).clip(0, np.iinfo(image.dtype).max) if whole else part
    return out
