"""Pictures of maps of values: colours for numbers, red, green and blue for directions, cut-outs for coverage."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bands import displayed

#: Colours from the lowest to the highest value, at equal distances; each is lighter than the one before.
_COLOURS = ((13, 8, 60), (84, 20, 130), (170, 45, 110), (228, 95, 60), (250, 170, 60), (255, 245, 190))
_SHOWN = (2, 98)  # percentiles of the values that get the first and the last colour
_UNKNOWN = (128, 128, 128)  # of pixels without a value


def coloured(
    values: NDArray[np.floating], limits: tuple[float, float] | None = None, *, reverse: bool = False
) -> NDArray[np.uint8]:
    """Colours for numbers: dark for low and light for high ones; pixels that are not finite are grey.

    Args:
        values: ``(H, W)``.
        limits: values of the first and the last colour; default: all but the lowest and highest two percent.
        reverse: whether low values are light, for example what is near.

    Returns:
        ``(H, W, 3)``.
    """
    finite = np.isfinite(values)
    if limits is None:
        low, high = np.percentile(values[finite], _SHOWN) if finite.any() else (0.0, 1.0)
    else:
        low, high = limits
    share = np.clip((np.where(finite, values, low) - low) / (high - low if high > low else 1), 0, 1)
    share = 1 - share if reverse else share
    table = np.array(_COLOURS, np.float64)
    place = share * (len(table) - 1)
    found = np.stack([np.interp(place, np.arange(len(table)), table[:, channel]) for channel in range(3)], axis=2)
    return np.where(finite[..., None], np.rint(found), _UNKNOWN).astype(np.uint8)


def direction_colours(normals: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Colours of unit vectors ``(H, W, 3)``: -1..1 of x, y, z as 0..255 of red, green, blue; grey without a value."""
    finite = np.isfinite(normals).all(2, keepdims=True)
    scaled = np.rint((np.where(finite, normals, 0) + 1) * 127.5).clip(0, 255)
    return np.where(finite, scaled, _UNKNOWN).astype(np.uint8)


def cut_out(image: NDArray[Any], alpha: NDArray[np.floating]) -> NDArray[np.uint8]:
    """The image ``(H, W, C)`` with the coverage ``(H, W)`` of 0..1 as alpha: ``(H, W, 4)``."""
    opacity = np.rint(np.nan_to_num(alpha).clip(0, 1) * 255).astype(np.uint8)
    return np.concatenate([displayed(image), opacity[..., None]], axis=2)


def map_colours(
    values: NDArray[np.floating], kind: str, limits: tuple[float, float] | None = None
) -> NDArray[np.uint8]:
    """Colours of a map ``(H, W, C)`` of a kind: directions for normals, else of its first channel; near is light."""
    if kind == "normals":
        return direction_colours(values)
    return coloured(values[..., 0], (0.0, 1.0) if kind == "alpha" else limits, reverse=kind == "depth")
