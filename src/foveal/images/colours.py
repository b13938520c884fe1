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


def colour_table(labels: Labels) -> NDArray[np.uint8]:
    """The colour of each class id, uint8.

    Returns:
        ``(256, 3)``, or ``(65536, 3)`` if there are more than 256 classes. The last row (ignore) is black, unless it is
        a class.
    """
    count = len(labels.names)
    colours = np.zeros((IGNORE + 1 if count <= IGNORE + 1 else ignore_id(count) + 1, 3), np.uint8)
    colours[:count] = labels.palette or distinct_colours(count)
    if count <= IGNORE:
        colours[IGNORE] = _IGNORED
    return colours


def drawable(text: str) -> str:
    """Text on one line, with question marks for characters beyond Latin-1, which Pillow's built-in font may lack."""
    return printable(text).encode("latin-1", "replace").decode("latin-1")
