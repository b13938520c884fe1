"""Colours of classes, and text that pictures can show."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..info import IGNORE, Labels, ignore_id
from ..text import printable

_IGNORED = (0, 0, 0)


def distinct_colours(count: int) -> tuple[tuple[int, int, int], ...]:
    """Colours for classes without a palette; successive hues are a golden angle apart, so that they differ clearly."""
    import colorsys

    hues = ((0.11 + i * 0.618033988749895) % 1 for i in range(count))
    tones = (colorsys.hsv_to_rgb(hue, 0.65 + 0.35 * (i % 2), 0.95 - 0.3 * (i % 3 == 2)) for i, hue in enumerate(hues))
    return tuple((round(r * 255), round(g * 255), round(b * 255)) for r, g, b in tones)


def palette_of(labels: Labels, count: int) -> tuple[tuple[int, int, int], ...]:
    """Colour of each of ``count`` classes: those of the labels, else distinct ones."""
    return labels.palette or distinct_colours(count)


def contrasting_colours(count: int) -> tuple[tuple[int, int, int], ...]:
    """Colours as far apart as possible in CIELAB, where distances are those that the eye sees.

    Each next colour is the one of a grid of RGB values that is farthest from all before; black and white are taken as
    given, so that colours are neither as dark as shadows nor as light as paper.
    """
    levels = np.linspace(0, 255, 9).round()
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    places = _cielab(grid)
    nearest = np.minimum(*(np.linalg.norm(places - place, axis=1) for place in _cielab(grid[[0, -1]])))
    found: list[tuple[int, int, int]] = []
    for _ in range(count):
        best = int(nearest.argmax())
        red, green, blue = map(int, grid[best])
        found.append((red, green, blue))
        nearest = np.minimum(nearest, np.linalg.norm(places - places[best], axis=1))
    return tuple(found)


def contrasting_palette(classes: NDArray[np.integer], count: int) -> tuple[tuple[int, int, int], ...]:
    """Contrasting colours for the classes of a mask; the largest class gets the first. Other classes are grey."""
    pixels = np.bincount(classes.ravel(), minlength=count)
    order = [index for index in np.argsort(-pixels, kind="stable").tolist() if pixels[index]]
    palette = [(128, 128, 128)] * len(pixels)
    for index, colour in zip(order, contrasting_colours(len(order)), strict=True):
        palette[index] = colour
    return tuple(palette)


def _cielab(colours: NDArray[np.floating]) -> NDArray[np.float64]:
    """sRGB of 0..255 to CIELAB for the white of D65, ``(N, 3)``. Source: IEC 61966-2-1, CIE 15."""
    scaled = colours / 255
    linear = np.where(scaled <= 0.04045, scaled / 12.92, ((scaled + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    ratio = linear @ to_xyz.T / to_xyz.sum(1)
    root = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = root.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def colour_table(labels: Labels) -> NDArray[np.uint8]:
    """The colour of each class id, uint8.

    Returns:
        ``(256, 3)``, or ``(65536, 3)`` if there are more than 256 classes. The last row (ignore) is black, unless it is
        a class.
    """
    count = len(labels.names)
    colours = np.zeros((IGNORE + 1 if count <= IGNORE + 1 else ignore_id(count) + 1, 3), np.uint8)
    colours[:count] = palette_of(labels, count)
    if count <= IGNORE:
        colours[IGNORE] = _IGNORED
    return colours


def drawable(text: str) -> str:
    """Text on one line, with question marks for characters beyond Latin-1, which Pillow's built-in font may lack."""
    return printable(text).encode("latin-1", "replace").decode("latin-1")
