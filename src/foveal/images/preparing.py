"""Turn images into the input of a network: resize, crop, normalise, pad.

Training, prediction, export and evaluation all prepare images with these functions, so that they agree.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError
from ..info import Preprocess
from .bands import resized

_BAND = 16  # rows that prepare() normalises at a time: few enough to stay in the CPU cache


def prepare(image: NDArray[Any], preprocess: Preprocess, min_size: int = 1) -> NDArray[np.float32]:
    """Turn an image into the input of a network.

    Args:
        image: ``(H, W, C)``, its channels and type those of ``preprocess``.
        preprocess: size, resampling filter, mean and std.
        min_size: smaller sides are padded at the right and bottom to this number of pixels, by repeating the edge.

    Returns:
        ``(1, C, h, w)`` float32, contiguous.

    Raises:
        InputError: ``preprocess`` has an unknown resampling filter.
    """
    channels = len(preprocess.mean)
    image = _resize(image, preprocess)
    height, width = image.shape[:2]
    if height < min_size or width < min_size:
        image = np.pad(image, ((0, max(0, min_size - height)), (0, max(0, min_size - width)), (0, 0)), mode="edge")
    gain = np.array([1 / (preprocess.peak * std) for std in preprocess.std], np.float32)[:, None, None]
    shift = np.array([m / s for m, s in zip(preprocess.mean, preprocess.std, strict=True)], np.float32)[:, None, None]
    height, width = preprocess.size if preprocess.pad and preprocess.size else image.shape[:2]
    out = np.zeros((1, channels, height, width), np.float32)
    for top in range(0, image.shape[0], _BAND):
        band = out[0, :, top : min(top + _BAND, image.shape[0]), : image.shape[1]]
        band[...] = image[top : top + _BAND].transpose(2, 0, 1)
        band *= gain
        band -= shift
    return out


def network_size(height: int, width: int, preprocess: Preprocess) -> tuple[int, int]:
    """(H, W) of the network's input for an image of ``height`` x ``width``, before padding."""
    if preprocess.size is not None and preprocess.pad:
        return long_side_size(height, width, max(preprocess.size))
    if preprocess.size is not None:
        return preprocess.size
    if preprocess.max_side is None or max(height, width) <= preprocess.max_side:
        return height, width
    scale = preprocess.max_side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def describe_size(preprocess: Preprocess) -> str:
    """Size of the network's input in words."""
    if preprocess.size is not None:
        height, width = preprocess.size
        return f"images resized to {width}x{height}" + ", with padding" * preprocess.pad
    return f"images of up to {preprocess.max_side} pixels" if preprocess.max_side else "images of any size"


def long_side_size(height: int, width: int, side: int) -> tuple[int, int]:
    """(H, W) in pixels of an image after a resize of its long side to ``side``, rounded as in SAM."""
    scale = side / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def _resize(image: NDArray[Any], preprocess: Preprocess) -> NDArray[Any]:
    """Resize to :func:`network_size`; with a ``crop_ratio``, resize and crop the centre."""
    height, width = network_size(image.shape[0], image.shape[1], preprocess)
    crop = preprocess.crop_ratio > 0 and preprocess.size is not None
    if image.shape[:2] == (height, width) and not crop:
        return image
    try:
        kernel = Image.Resampling[preprocess.resample.upper()]
    except KeyError:
        raise InputError(
            f"unknown resampling filter {preprocess.resample!r}: use bicubic, bilinear or nearest"
        ) from None
    if crop:
        return _resize_and_crop(image, (width, height), preprocess, kernel)
    return resized(image, (width, height), kernel)


def _resize_and_crop(
    image: NDArray[Any], size: tuple[int, int], preprocess: Preprocess, kernel: Image.Resampling
) -> NDArray[Any]:
    """Resize to ``size`` (W, H) divided by the crop ratio, then crop the centre.

    Rounds as torchvision's Resize and CenterCrop do, with which the published classifiers were evaluated.
    """
    width, height = size
    if preprocess.squash:
        wide, high = (math.floor(side / preprocess.crop_ratio) for side in size)
    else:
        short = math.ceil(min(height, width) / preprocess.crop_ratio)
        high, wide = (short * side // min(image.shape[:2]) for side in image.shape[:2])
    wide, high = max(width, wide), max(height, high)
    left, top = round((wide - width) / 2), round((high - height) / 2)
    return resized(image, (wide, high), kernel)[top : top + height, left : left + width]
