"""Augmentations that a run adds to its crops and flips. A new one is a function and a line of a table.

Each takes an image ``(H, W, C)`` with its mask ``(H, W)`` or ``(H, W, K)``, or with ``None`` for classification, and
returns both with the same sizes and types. Geometric ones change image and mask alike; what comes from outside of the
image has the ``fill`` colour, and its mask is ignored. Changes of colour leave the mask alone, and images of other
bands than RGB.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .rand_augment import rand_augment
from .warping import affine, change_mask, rotation

Picture = NDArray[Any]
Mask = NDArray[Any] | None
Fill = tuple[float, ...]
Pair = tuple[Picture, Mask]


class Valid(NamedTuple):
    """The valid values of an augmentation, in words and as a test."""

    text: str
    contains: Callable[[Any], bool]


def _number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


_PROBABILITY = Valid("a probability, 0 to 1", lambda value: _number(value, 0, 1))
_DEGREES = Valid("the largest angle in degrees, 0 to 180", lambda value: _number(value, 0, 180))
_ALPHA = Valid(
    "the parameter of a Beta distribution, 0.01 to 10, or [parameter, probability]",
    lambda value: (
        _number(value, 0.01, 10)
        or (
            isinstance(value, list | tuple)
            and len(value) == 2
            and _number(value[0], 0.01, 10)
            and _number(value[1], 0, 1)
        )
    ),
)
_RAND = Valid(
    "[number of operations 1 to 14, strength 0 to 10]",
    lambda value: (
        isinstance(value, list | tuple)
        and len(value) == 2
        and isinstance(value[0], int)
        and _number(value[0], 1, 14)
        and _number(value[1], 0, 10)
    ),
)


@dataclass(frozen=True)
class Transform:
    """An augmentation of one image.

    Attributes:
        help: what it does.
        valid: values of its strength.
        apply: arguments: image, mask, strength, random generator, fill colour.
        tasks: names of the tasks that it is for.
    """

    help: str
    valid: Valid
    apply: Callable[[Picture, Mask, Any, np.random.Generator, Fill], Pair]
    tasks: tuple[str, ...] = ("segment", "classify")


class Mixed(NamedTuple):
    """Two images in one.

    Attributes:
        image: ``(H, W, C)``.
        region: rows and columns that are from the second image; ``None``: all pixels are from both.
        share: share of the first image, 0..1.
    """

    image: Picture
    region: tuple[slice, slice] | None
    share: float


@dataclass(frozen=True)
class Mix:
    """An augmentation that makes one image of two, which have the same size.

    Attributes:
        help: what it does.
        valid: values of its parameter.
        apply: arguments: both images, parameter, random generator.
        tasks: names of the tasks that it is for.
    """

    help: str
    valid: Valid
    apply: Callable[[Picture, Picture, Any, np.random.Generator], Mixed]
    tasks: tuple[str, ...] = ("segment", "classify")


# ---- one image


def _vertical_flip(image: Picture, mask: Mask, p: float, rng: np.random.Generator, fill: Fill) -> Pair:
    if rng.random() >= p:
        return image, mask
    return image[::-1], None if mask is None else mask[::-1]


def _rotate(image: Picture, mask: Mask, degrees: float, rng: np.random.Generator, fill: Fill) -> Pair:
    matrix = rotation(float(rng.uniform(-degrees, degrees)), image.shape[:2])
    turned = affine(image, matrix, Image.Resampling.BICUBIC, fill)
    if mask is None:
        return turned, None
    return turned, change_mask(mask, lambda layers, outside: affine(layers, matrix, Image.Resampling.NEAREST, outside))


def _rand_augment(image: Picture, mask: Mask, value: Any, rng: np.random.Generator, fill: Fill) -> Pair:
    return rand_augment(image, mask, int(value[0]), float(value[1]), rng, fill)


_ERASED_AREA, _ERASED_ASPECT = (0.02, 0.33), (0.3, 1 / 0.3)  # arXiv 1708.04896, section 4


def _erase(image: Picture, mask: Mask, p: float, rng: np.random.Generator, fill: Fill) -> Pair:
    """The mask stays: what is erased must be inferred from what surrounds it."""
    if rng.random() >= p:
        return image, mask
    rows, columns = _box(image.shape[:2], float(rng.uniform(*_ERASED_AREA)), _ERASED_ASPECT, rng)
    erased = image.copy()
    part = erased[rows, columns]
    peak = np.iinfo(image.dtype).max if image.dtype.kind == "u" else max(float(image.max()), 1e-6)
    part[...] = (rng.random(part.shape) * peak).astype(image.dtype)
    return erased, mask


def _box(
    size: tuple[int, ...], area: float, aspect: tuple[float, float], rng: np.random.Generator
) -> tuple[slice, slice]:
    """A random box of this share of the area, at most as large as the image; ``aspect``: range of width / height."""
    height, width = size
    ratio = float(np.exp(rng.uniform(*np.log(aspect))))
    rows = min(height, max(1, round(np.sqrt(area * height * width / ratio))))
    columns = min(width, max(1, round(np.sqrt(area * height * width * ratio))))
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    return slice(top, top + rows), slice(left, left + columns)


TRANSFORMS: Mapping[str, Transform] = {
    "vertical_flip": Transform("flips upside down", _PROBABILITY, _vertical_flip),
    "rotate": Transform("turns around the middle", _DEGREES, _rotate),
    "rand_augment": Transform("some of 14 random operations (arXiv 1909.13719)", _RAND, _rand_augment),
    "erase": Transform("noise in a random box, masks stay (arXiv 1708.04896)", _PROBABILITY, _erase),
}


# ---- two images


def _mixup(first: Picture, second: Picture, alpha: float, rng: np.random.Generator) -> Mixed:
    share = float(rng.beta(alpha, alpha))
    mean = share * first.astype(np.float32) + (1 - share) * second.astype(np.float32)
    return Mixed((np.rint(mean) if first.dtype.kind == "u" else mean).astype(first.dtype), None, share)


def _cutmix(first: Picture, second: Picture, alpha: float, rng: np.random.Generator) -> Mixed:
    height, width = first.shape[:2]
    region = _box((height, width), 1 - float(rng.beta(alpha, alpha)), (width / height, width / height), rng)
    image = first.copy()
    image[region] = second[region]
    return Mixed(image, region, 1 - image[region].size / image.size)


MIXES: Mapping[str, Mix] = {
    "mixup": Mix("means of two images and of their classes (arXiv 1710.09412)", _ALPHA, _mixup, ("classify",)),
    "cutmix": Mix("a box from another image, with its mask or class (arXiv 1905.04899)", _ALPHA, _cutmix),
}

#: All augmentations by name, in the order in which they are applied.
AUGMENTATIONS: Mapping[str, Transform | Mix] = {**TRANSFORMS, **MIXES}
