"""The square frame of 1024 pixels to which Segment Anything resizes images, and the way back to the image."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .preparing import long_side_size

FRAME = 1024  #: side of the square frame, in pixels; prompts have its coordinates
LOW_RES = 256  #: side of the mask logits that the network computes, in pixels


def frame_size(size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) of an image in the frame, where its long side has 1024 pixels.

    Args:
        size: (H, W) of the image.
    """
    return long_side_size(*size, FRAME)


def logits_size(size: tuple[int, int]) -> tuple[int, int]:
    """Number of rows and columns of mask logits ``(256, 256)`` that have an influence on the masks of an image.

    Args:
        size: (H, W) of the image.
    """
    scale = FRAME // LOW_RES
    # The last pixel lies between two samples, of which the second one counts, too.
    height, width = (min(LOW_RES, int((side - 0.5) / scale - 0.5) + 2) for side in frame_size(size))
    return height, width


def at_image_size(low_res: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.float32]:
    """Resize mask logits ``(..., 256, 256)`` to the size (H, W) of the image, ``(..., H, W)``.

    SAM resizes them bilinearly to the frame, crops the frame to the image, and resizes bilinearly to the image's size.
    All three steps are linear and separable, so one matrix product per axis does the same.
    """
    height, width = frame_size(size)
    rows = _resampling_matrix(low_res.shape[-2], height, size[0])
    columns = _resampling_matrix(low_res.shape[-1], width, size[1])
    inside: NDArray[np.float32] = low_res[..., : rows.shape[1], : columns.shape[1]].astype(np.float32, copy=False)
    return np.matmul(rows @ inside, columns.T)


@lru_cache(maxsize=4)
def _resampling_matrix(length: int, inside: int, target: int) -> NDArray[np.float32]:
    """Matrix that resamples ``length`` samples to the frame, crops it to ``inside``, and resamples that to ``target``.

    Returns:
        ``(target, n)``: only the first ``n`` of the ``length`` samples have an influence.
    """
    to_frame = _bilinear(length, FRAME)[:inside]
    used = np.flatnonzero(to_frame.any(0))[-1] + 1
    return (_bilinear(inside, target) @ to_frame[:, :used]).astype(np.float32)


def _bilinear(length: int, target: int) -> NDArray[np.float64]:
    """Matrix ``(target, length)`` of linear interpolation between pixel centres; beyond the borders, the edge value."""
    # Positions are float32, as in torch: their rounding would be the largest difference to SAM's own masks.
    place = (np.arange(target, dtype=np.float32) + np.float32(0.5)) * np.float32(length / target) - np.float32(0.5)
    place = np.clip(place, 0, length - 1)
    low = np.minimum(place.astype(int), max(0, length - 2))
    weight = (place - low).astype(np.float64)
    out = np.zeros((target, length))
    out[np.arange(target), low] = 1 - weight
    out[np.arange(target), np.minimum(low + 1, length - 1)] += weight
    return out
