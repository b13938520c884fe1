"""RandAugment: a number of operations, drawn at random from 14, all of the same strength (arXiv 1909.13719)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from .warping import Matrix, affine, centred, change_mask, rotation

_ROTATION, _SHEAR, _SHIFT = 30.0, 0.3, 0.45  # at full strength: degrees, tangent, share of the side
_COLOUR = 0.9  # change of brightness, contrast, colour and sharpness

Geometry = Callable[[float, tuple[int, ...]], Matrix]
Colour = Callable[[Image.Image, float], Image.Image]

#: Maps by name; arguments: strength from -1 to 1, (H, W).
_GEOMETRY: Mapping[str, Geometry] = {
    "rotate": lambda s, size: rotation(_ROTATION * s, size),
    "shear_x": lambda s, size: centred((1, _SHEAR * s, 0, 1), size),
    "shear_y": lambda s, size: centred((1, 0, _SHEAR * s, 1), size),
    "translate_x": lambda s, size: (1, 0, _SHIFT * s * size[1], 0, 1, 0),
    "translate_y": lambda s, size: (1, 0, 0, 0, 1, _SHIFT * s * size[0]),
}

#: Changes of colour by name; arguments: RGB image, strength from -1 to 1.
_COLOURS: Mapping[str, Colour] = {
    "auto_contrast": lambda image, s: ImageOps.autocontrast(image),
    "equalize": lambda image, s: ImageOps.equalize(image),
    "posterize": lambda image, s: ImageOps.posterize(image, 8 - round(4 * abs(s))),
    "solarize": lambda image, s: ImageOps.solarize(image, 256 - math.floor(256 * abs(s))),
    "brightness": lambda image, s: ImageEnhance.Brightness(image).enhance(1 + _COLOUR * s),
    "contrast": lambda image, s: ImageEnhance.Contrast(image).enhance(1 + _COLOUR * s),
    "colour": lambda image, s: ImageEnhance.Color(image).enhance(1 + _COLOUR * s),
    "sharpness": lambda image, s: ImageEnhance.Sharpness(image).enhance(1 + _COLOUR * s),
}

OPERATIONS = ("identity", *_COLOURS, *_GEOMETRY)


def rand_augment(
    image: NDArray[Any],
    mask: NDArray[Any] | None,
    count: int,
    strength: float,
    rng: np.random.Generator,
    fill: tuple[float, ...],
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Apply ``count`` operations of a strength from 0 to 10; those of colour are left out for other bands than RGB."""
    for _ in range(count):
        name = OPERATIONS[int(rng.integers(len(OPERATIONS)))]
        image, mask = operate(name, image, mask, float(rng.choice((-1, 1))) * strength / 10, fill)
    return image, mask


def operate(
    name: str, image: NDArray[Any], mask: NDArray[Any] | None, strength: float, fill: tuple[float, ...]
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Apply one of :data:`OPERATIONS` with a strength from -1 to 1."""
    if name in _GEOMETRY:
        matrix = _GEOMETRY[name](strength, image.shape[:2])
        image = affine(image, matrix, Image.Resampling.BICUBIC, fill)
        if mask is not None:
            nearest = Image.Resampling.NEAREST
            mask = change_mask(mask, lambda layers, outside: affine(layers, matrix, nearest, outside))
    elif name in _COLOURS and image.dtype == np.uint8 and image.shape[2] == 3:
        image = np.asarray(_COLOURS[name](Image.fromarray(np.ascontiguousarray(image)), strength))
    return image, mask
