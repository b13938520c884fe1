"""The square frame of 1024 pixels that Segment Anything works in."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .preparing import long_side_size

FRAME = 1024  #: side of the square in which SAM's prompts and masks live


LOW_RES = 256  #: side of the masks that the network makes of it


def frame_size(size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) of an image in the frame of 1024, where its long side has that length."""
    return long_side_size(*size, FRAME)


def at_image_size(low_res: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.float32]:
    """Bring mask logits ``(..., 256, 256)`` to the image's size, ``(..., H, W)``.

    As SAM does: bilinear to the frame of 1024, cut to the image, bilinear to its size. Both are linear, and one axis
    after the other, so each axis takes one product of matrices.
    """
    height, width = frame_size(size)
    rows = _resampling(low_res.shape[-2], height, size[0])
    columns = _resampling(low_res.shape[-1], width, size[1])
    inside: NDArray[np.float32] = low_res[..., : rows.shape[1], : columns.shape[1]].astype(np.float32, copy=False)
    return np.matmul(rows @ inside, columns.T)


@lru_cache(maxsize=4)
def _resampling(length: int, inside: int, target: int) -> NDArray[np.float32]:
    """``length`` places to the frame, the first ``inside`` of those to ``target``: ``(target, first places)``."""
    to_frame = _bilinear(length, FRAME)[:inside]
    used = np.flatnonzero(to_frame.any(0))[-1] + 1
    return (_bilinear(inside, target) @ to_frame[:, :used]).astype(np.float32)


def _bilinear(length: int, target: int) -> NDArray[np.float64]:
    """Matrix ``(target, length)`` of bilinear interpolation between the centres of pixels, held at the borders."""
    # Positions in float32, as torch has them: their rounding is the largest difference to SAM's own masks.
    at = (np.arange(target, dtype=np.float32) + np.float32(0.5)) * np.float32(length / target) - np.float32(0.5)
    at = np.clip(at, 0, length - 1)
    low = np.minimum(at.astype(int), max(0, length - 2))
    weight = (at - low).astype(np.float64)
    out = np.zeros((target, length))
    out[np.arange(target), low] = 1 - weight
    out[np.arange(target), np.minimum(low + 1, length - 1)] += weight
    return out
