"""Simulated clicks against closed forms, brute force and scipy."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import distance_transform_edt

from foveal.evaluation.clicks import Click, next_click
from helpers.objects import Mask, rectangle


def test_the_first_click_is_in_the_middle() -> None:
    nothing = np.zeros((30, 40), bool)
    odd = rectangle((30, 40), slice(5, 14), slice(10, 25))  # 9 rows, so that row 9 is the middle
    assert next_click(odd, nothing) == Click(14, 9, 1)  # five from top and bottom: the first column five from the left
    even = rectangle((30, 40), slice(5, 15), slice(10, 20))
    assert next_click(even, nothing) == Click(14, 9, 1)  # four in the middle are as deep
    ring = odd & ~rectangle((30, 40), slice(6, 13), slice(11, 24))
    assert next_click(ring, nothing) == Click(10, 5, 1)  # one pixel wide all around
    assert next_click(np.ones((7, 9), bool), np.zeros((7, 9), bool)) == Click(3, 3, 1)  # the frame is an edge


def test_clicks_go_to_the_deeper_error() -> None:
    target = rectangle((30, 40), slice(5, 14), slice(5, 14))
    too_much = target | rectangle((30, 40), slice(20, 31), slice(20, 31))
    assert next_click(target, too_much) == Click(24, 24, 0)  # ten rows to the image's end: both middles tie
    half = rectangle((30, 40), slice(5, 14), slice(5, 10))
    assert next_click(target, half) == Click(11, 6, 1)  # four columns are missing
    # Missing and superfluous are as deep: the superfluous is clicked, as RITM does.
    elsewhere = rectangle((30, 40), slice(20, 29), slice(5, 14))
    assert next_click(target, elsewhere) == Click(9, 24, 0)
    assert next_click(target, target) is None


def test_no_pixel_is_clicked_twice() -> None:
    target = rectangle((9, 9), slice(3, 6), slice(3, 6))
    nothing, clicks = np.zeros((9, 9), bool), []
    while click := next_click(target, nothing, clicks):
        clicks.append(click)
    assert clicks[0] == Click(4, 4, 1)
    assert [click[:2] for click in clicks[1:]] == [(x, y) for y in (3, 4, 5) for x in (3, 4, 5) if (x, y) != (4, 4)]


@given(
    target=arrays(bool, (17, 23), elements=st.sampled_from([True, True, True, False])),
    predicted=arrays(bool, (17, 23), elements=st.booleans()),
    wide=st.booleans(),
    clicked=st.lists(st.tuples(st.integers(0, 22), st.integers(0, 16)), max_size=3),
)
def test_clicks_are_where_an_exact_distance_transform_is_highest(
    target: Mask, predicted: Mask, wide: bool, clicked: list[tuple[int, int]]
) -> None:
    if wide:
        target, predicted = (mask.repeat(3, 0).repeat(2, 1) for mask in (target, predicted & False))
    depths = []
    for error in (target & ~predicted, predicted & ~target):
        found = distance_transform_edt(np.pad(error, 1))
        assert isinstance(found, np.ndarray)
        depths.append(np.round(found[1:-1, 1:-1] ** 2))
        for x, y in clicked:
            depths[-1][y, x] = 0
    missing, excess = depths
    deeper = missing if missing.max() > excess.max() else excess
    y, x = np.unravel_index(deeper.argmax(), deeper.shape)
    expected = Click(int(x), int(y), int(deeper is missing)) if deeper.max() else None
    assert next_click(target, predicted, [Click(x, y, 1) for x, y in clicked]) == expected
