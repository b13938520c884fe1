"""Colours of classes and text that images can show."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..info import IGNORE, Labels


def distinct_colours(count: int) -> tuple[tuple[int, int, int], ...]:
    """Colours for classes without a palette: hues a golden angle apart, so that neighbours differ."""
    import colorsys

    hues = ((0.11 + i * 0.618033988749895) % 1 for i in range(count))
    tones = (colorsys.hsv_to_rgb(hue, 0.65 + 0.35 * (i % 2), 0.95 - 0.3 * (i % 3 == 2)) for i, hue in enumerate(hues))
    return tuple((round(r * 255), round(g * 255), round(b * 255)) for r, g, b in tones)


def colour_table(labels: Labels) -> NDArray[np.uint8]:
    """Colour of each class id, ``(256, 3)`` or one row per class where there are more; 255 = ignore is black."""
    count = len(labels.names)
    colours = np.zeros((max(IGNORE + 1, count), 3), np.uint8)
    colours[:count] = labels.palette or distinct_colours(count)
    if count <= IGNORE:
        colours[IGNORE] = _IGNORED
    return colours


def printable(text: str) -> str:
    """What the font of our pictures has of a text."""
    return text.encode("latin-1", "replace").decode("latin-1")


_IGNORED = (0, 0, 0)
