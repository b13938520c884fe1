"""Regions of masks: run lengths as in COCO, connected parts as in SciPy, boxes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from scipy import ndimage

from foveal.images import regions


@st.composite
def binary_masks(draw: st.DrawFn) -> np.ndarray:
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    share = draw(st.sampled_from([0.0, 0.1, 0.4, 0.6, 0.9, 1.0]))
    return np.random.default_rng(draw(st.integers(0, 2**16))).random((height, width)) < share


@given(mask=binary_masks())
def test_runs_are_cocos(mask: np.ndarray) -> None:
    runs = regions.runs_of(mask)
    np.testing.assert_array_equal(regions.mask_of(runs, mask.shape), mask)
    peer: Any = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    result = regions.coco_rle(runs, mask.shape)
    assert result == {"size": list(mask.shape), "counts": peer["counts"].decode()}
    assert json.loads(json.dumps(result)) == result
    np.testing.assert_array_equal(regions.decoded(result), mask)
    np.testing.assert_array_equal(regions.decoded(regions.uncompressed_rle(runs, mask.shape)), mask)


@given(mask=binary_masks())
def test_connected_parts_are_scipys(mask: np.ndarray) -> None:
    result, areas = regions.label_parts(mask)
    labelled: Any = ndimage.label(mask, np.ones((3, 3)))
    peer, count = labelled
    assert len(areas) == count == len({*zip(result[mask].tolist(), peer[mask].tolist(), strict=True)})
    np.testing.assert_array_equal(result > 0, mask)
    np.testing.assert_array_equal(areas, np.bincount(result.ravel(), minlength=count + 1)[1:])


def test_a_snake_is_one_part() -> None:
    """Rows that are connected at alternating ends are one part."""
    snake = np.zeros((41, 30), bool)
    snake[::2] = True
    snake[1::4, -1] = snake[3::4, 0] = True
    assert regions.label_parts(snake)[1].tolist() == [snake.sum()]
    snake[20] = False
    assert regions.label_parts(snake)[1].tolist() == [snake[:20].sum(), snake[21:].sum()]


def test_small_parts() -> None:
    mask = np.zeros((30, 30), bool)
    mask[5:20, 5:20] = True
    clean = mask.copy()
    mask[8:10, 8:10] = False
    mask[25:27, 25:27] = True
    result, changed = regions.without_small_parts(mask, 5)
    assert changed
    np.testing.assert_array_equal(result, clean)
    result, changed = regions.without_small_parts(mask, 4)  # parts of exactly min_area stay
    assert not changed
    np.testing.assert_array_equal(result, mask)
    result, changed = regions.without_small_parts(mask, 700)  # the outside is also smaller, so it is filled as a hole
    assert changed
    assert result.all()
    specks = np.zeros((30, 30), bool)
    specks[3, 3] = specks[10:12, 10:12] = True
    result, changed = regions.without_small_parts(specks, 50)
    assert changed
    assert result.sum() == 4
    assert result[10:12, 10:12].all()  # the largest stays


@given(mask=binary_masks().filter(lambda mask: bool(mask.any())))
def test_boxes_of_masks(mask: np.ndarray) -> None:
    rows, columns = np.nonzero(mask)
    expected = [columns.min(), rows.min(), columns.max(), rows.max()]
    np.testing.assert_array_equal(regions.boxes_of(np.stack([mask, mask])), [expected, expected])
