"""Prompts sampled from masks: points inside, boxes close to the object, clicks on errors, all in the frame."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from foveal.training.prompt import pack_masks, unpack_masks
from foveal.training.sampled_prompts import sample_boxes, sample_clicks, sample_points


def frame_masks(seed: int, count: int = 3) -> Tensor:
    """Random rectangles in the frame, from one pixel to the whole frame, each with random holes."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, 1024, 1024), bool)
    for mask in masks:
        size = 2 ** rng.uniform(0, 10, 2)
        y, x = (int(rng.integers(0, 1024 - int(s) + 1)) for s in size)
        mask[y : y + int(size[0]), x : x + int(size[1])] = True
        holes = rng.random(mask.shape) < 0.3
        holes[y, x] = False
        mask &= ~holes
    return torch.from_numpy(masks)


@given(st.integers(0, 1 << 20))
def test_points_lie_inside(seed: int) -> None:
    torch.manual_seed(seed)
    masks = frame_masks(seed, 2)
    points = sample_points(masks, 5)
    assert points.shape == (2, 5, 2)
    for mask, places in zip(masks, points.long(), strict=True):
        assert mask[places[:, 1], places[:, 0]].all()


@given(st.integers(0, 1 << 20))
def test_boxes_keep_near_their_objects(seed: int) -> None:
    """At most 20 pixels and half a side from the true corners, the right way round, inside the frame."""
    torch.manual_seed(seed)
    masks = frame_masks(seed, 2)
    for mask, (low, high) in zip(masks, sample_boxes(masks), strict=True):
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        first, last = (torch.stack([columns[i], rows[i]]).float() + extra for i, extra in ((0, 0), (-1, 1)))
        limit = ((last - first) / 2).clamp(max=20)
        assert ((low - first).abs() <= limit + 1e-3).all()
        assert ((high - last).abs() <= limit + 1e-3).all()
        assert (low <= high).all()
        assert low.min() >= 0
        assert high.max() <= 1024


def test_noise_of_boxes_is_a_tenth_of_their_side() -> None:
    mask = torch.zeros(1, 1024, 1024, dtype=torch.bool)
    mask[:, 500:600, 200:240] = True
    torch.manual_seed(0)
    corners = torch.cat([sample_boxes(mask) for _ in range(400)])
    assert abs(float(corners[:, 0, 0].std()) - 4) < 0.6
    assert abs(float(corners[:, 1, 1].std()) - 10) < 1.2
    assert abs(float(corners[:, 1, 0].mean()) - 240) < 1


@given(st.integers(0, 1 << 20))
def test_clicks_fall_on_mistakes(seed: int) -> None:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    found, true = (torch.from_numpy(rng.random((4, 32, 32)) < rng.uniform(0, 1)) for _ in range(2))
    found[1] = true[1]  # no mistake
    true[1, 3, 3] = found[1, 3, 3] = True
    found[2] = true[2] = False  # nothing at all
    points, labels = sample_clicks(found, true)
    places = ((points[:, 0] + 0.5) / 32).long()
    for i in (0, 3):
        x, y = places[i]
        if (found[i] != true[i]).any():
            assert found[i, y, x] != true[i, y, x]
        assert bool(labels[i]) == bool(true[i, y, x])
    x, y = places[1]
    assert true[1, y, x]
    assert labels[1].item() == 1
    assert labels[2].item() == 0


@pytest.mark.parametrize("size", [(64, 96), (96, 64), (1024, 1024), (1500, 37)])
def test_masks_reach_the_frame(size: tuple[int, int]) -> None:
    """A packed and unpacked mask is at its place in the frame, and the padding is empty."""
    mask = np.zeros((1, *size), bool)
    mask[:, size[0] // 2 :, : max(1, size[1] // 4)] = True
    frame = unpack_masks(torch.from_numpy(pack_masks(mask, 3)))
    assert frame.shape == (3, 1024, 1024)
    assert not frame[1:].any()
    height, width = (round(side * 1024 / max(size)) for side in size)
    rows, columns = (frame[0].any(axis).nonzero()[:, 0] for axis in (1, 0))
    scale = 1024 / max(size)
    assert abs(int(rows[0]) - size[0] // 2 * scale) <= 1
    assert int(rows[-1]) == height - 1
    assert int(columns[0]) == 0
    assert abs(int(columns[-1]) + 1 - max(1, size[1] // 4) * width / size[1]) <= 1
