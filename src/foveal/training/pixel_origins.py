"""Masks with the origin of each pixel (row, column, image), by which what is stored for whole images is read."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.warping import ignored_in
from ..errors import InputError
from ..info import WIDE_IGNORE, ignore_id

_OUTSIDE = WIDE_IGNORE  # row and column of pixels that come from outside of the image


def with_origins(mask: NDArray[Any]) -> NDArray[np.uint16]:
    """Add the row and the column of each pixel: ``(H, W)`` -> ``(H, W, 3)``. Ignored pixels become 65535.

    Raises:
        InputError: a side has more than 65535 pixels.
    """
    if max(mask.shape) > _OUTSIDE:
        raise InputError(f"an image of {mask.shape[0]}x{mask.shape[1]}: teacher_cache is for sides of up to {_OUTSIDE}")
    rows, columns = np.indices(mask.shape, np.uint16)
    return np.stack([np.where(mask == ignored_in(mask), np.uint16(WIDE_IGNORE), mask), rows, columns], -1)


def with_image_number(mask: NDArray[np.uint16], index: int) -> NDArray[np.int32]:
    """Add the number of the image that the pixels come from: ``(h, w, 3)`` -> ``(h, w, 4)``."""
    number = np.full((*mask.shape[:2], 1), index, np.int32)
    return np.concatenate([mask.astype(np.int32), number], -1)


def to_target(mask: NDArray[Any]) -> Tensor:
    """A mask as the target of a sample: ``(h, w)`` int64, or ``(4, h, w)`` int32 of one that is tracked."""
    if mask.ndim == 2:
        return torch.from_numpy(mask.astype(np.int64))
    return torch.from_numpy(np.ascontiguousarray(mask.transpose(2, 0, 1)))


class TargetsWithOrigins(NamedTuple):
    """A batch of targets with the origin of each pixel, in parts.

    Attributes:
        ids: classes, ``(B, h, w)`` int64.
        row: of each pixel in the image that it comes from, ``(B, h, w)`` int32.
        column: the same.
        image: number of the image that it comes from, ``(B, h, w)`` int32.
        inside: whether it comes from inside of an image, ``(B, h, w)`` bool.
    """

    ids: Tensor
    row: Tensor
    column: Tensor
    image: Tensor
    inside: Tensor

    @classmethod
    def of(cls, target: Tensor, num_classes: int) -> TargetsWithOrigins:
        """The parts of ``(B, 4, h, w)`` targets of :func:`to_target`."""
        ids, row, column, index = target.unbind(1)
        ids = ids.long()
        return cls(ids.where(ids != WIDE_IGNORE, ignore_id(num_classes)), row, column, index, row != _OUTSIDE)
