"""Colours of overlays that the eye tells apart."""

from __future__ import annotations

import itertools

import numpy as np

from foveal.images.colours import _cielab, contrasting_colours, contrasting_palette, distinct_colours


def closest(colours: tuple[tuple[int, int, int], ...]) -> float:
    """Distance of the two colours that are most alike, in CIELAB."""
    places = _cielab(np.asarray(colours, float))
    return min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(places, 2))


def test_white_and_grey_in_cielab() -> None:
    """Lightness of white and of the middle grey: CIE 15."""
    found = _cielab(np.array([[255, 255, 255], [119, 119, 119.0]]))
    np.testing.assert_allclose(found, [[100, 0, 0], [50, 0, 0]], atol=0.1)


def test_they_are_farther_apart_than_successive_hues() -> None:
    for count in (5, 11, 19, 40):
        colours = contrasting_colours(count)
        assert len(set(colours)) == count
        assert closest(colours) > max(20, 1.2 * closest(distinct_colours(count)))
    assert contrasting_colours(19)[:5] == contrasting_colours(5)


def test_the_largest_class_has_the_first_colour_and_absent_ones_are_grey() -> None:
    classes = np.array([[3, 3, 3, 1]])
    first, second = contrasting_colours(2)
    assert contrasting_palette(classes, 5) == ((128, 128, 128), second, (128, 128, 128), first, (128, 128, 128))
