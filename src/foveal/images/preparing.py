"""From an image's pixels to a network's input: sizes, resizing, normalising, tiles.

Every road through Foveal prepares images here, so that they cannot drift apart.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError
from ..info import Preprocess

_BAND = 16  # rows that prepare() works on at a time


def prepare(image: NDArray[np.uint8], preprocess: Preprocess, min_size: int = 1) -> NDArray[np.float32]:
    """Turn an image into a network's input.

    Args:
        image: ``(H, W, 3)`` uint8.
        preprocess: resize, mean and std.
        min_size: smaller sides are replicate-padded at the right and bottom to this many pixels.

    Returns:
        ``(1, 3, h, w)`` float32, contiguous.

    Raises:
        InputError: unknown resampling filter.
    """
    image = _resized(image, preprocess)
    height, width = image.shape[:2]
    if height < min_size or width < min_size:
        image = np.pad(image, ((0, max(0, min_size - height)), (0, max(0, min_size - width)), (0, 0)), mode="edge")
    gain = np.array([1 / (255 * std) for std in preprocess.std], np.float32)[:, None, None]
    shift = np.array([m / s for m, s in zip(preprocess.mean, preprocess.std, strict=True)], np.float32)[:, None, None]
    height, width = preprocess.size if preprocess.pad and preprocess.size else image.shape[:2]
    out = np.zeros((1, 3, height, width), np.float32)
    for top in range(0, image.shape[0], _BAND):  # small enough to stay in cache between the three passes
        band = out[0, :, top : min(top + _BAND, image.shape[0]), : image.shape[1]]
        band[...] = image[top : top + _BAND].transpose(2, 0, 1)
        band *= gain
        band -= shift
    return out


def network_size(height: int, width: int, preprocess: Preprocess) -> tuple[int, int]:
    """(H, W) that an image of ``height`` x ``width`` has when the network sees it, before padding."""
    if preprocess.size is not None and preprocess.pad:
        return long_side_size(height, width, max(preprocess.size))
    if preprocess.size is not None:
        return preprocess.size
    if preprocess.max_side is None or max(height, width) <= preprocess.max_side:
        return height, width
    scale = preprocess.max_side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def long_side_size(height: int, width: int, side: int) -> tuple[int, int]:
    """(H, W) of an image whose long side becomes ``side``, rounded as SAM does, in pixels."""
    scale = side / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def _resized(image: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.uint8]:
    height, width = network_size(image.shape[0], image.shape[1], preprocess)
    cropped = preprocess.crop_ratio > 0 and preprocess.size is not None
    if image.shape[:2] == (height, width) and not cropped:
        return image
    try:
        kernel = Image.Resampling[preprocess.resample.upper()]
    except KeyError:
        raise InputError(
            f"unknown resampling filter {preprocess.resample!r}: use bicubic, bilinear or nearest"
        ) from None
    picture = Image.fromarray(image)
    if cropped:
        # Rounded as torchvision's Resize and CenterCrop do, with which the published classifiers were evaluated.
        if preprocess.squash:
            wide, high = (math.floor(side / preprocess.crop_ratio) for side in (width, height))
        else:
            short = math.ceil(min(height, width) / preprocess.crop_ratio)
            wide, high = (short * side // min(picture.size) for side in picture.size)
        picture = picture.resize((max(width, wide), max(height, high)), kernel)
        left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
        return np.asarray(picture.crop((left, top, left + width, top + height)))
    return np.asarray(picture.resize((width, height), kernel))
