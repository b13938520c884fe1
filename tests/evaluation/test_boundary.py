"""Contour scores equal a straightforward computation with scipy's distance transform and erosion, and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from foveal.evaluation.boundary import BAND, TOLERANCE, BoundaryScores, boundary_counts


def blobs(rng: np.random.Generator, size: tuple[int, int], classes: int) -> NDArray[np.uint8]:
    """Smooth regions of several classes."""
    noise = ndimage.gaussian_filter(rng.random((classes, *size)), (0, 4, 4))
    return noise.argmax(0).astype(np.uint8)


def expected_f(target: NDArray, predicted: NDArray, index: int) -> float:
    """By distance transforms over whole maps."""
    valid = target != 255
    tolerance = TOLERANCE * math.hypot(*target.shape)

    def contour(mask: NDArray) -> NDArray:
        other = valid & ~mask
        return mask & ndimage.binary_dilation(other)  # the default structure: four neighbours

    def near(points: NDArray, others: NDArray) -> float:
        if not points.any():
            return 1.0
        if not others.any():
            return 0.0
        return float((ndimage.distance_transform_edt(~others)[points] <= tolerance).mean())  # pyright: ignore

    ours, theirs = contour((predicted == index) & valid), contour(target == index)
    precision, recall = near(ours, theirs), near(theirs, ours)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def expected_bands(target: NDArray, predicted: NDArray, index: int) -> tuple[int, int]:
    """By d erosions with a 3x3 square inside a frame of background, as the paper has it; ignored pixels never erode."""
    valid = target != 255
    width = max(1, round(BAND * math.hypot(*target.shape)))

    def band(mask: NDArray) -> NDArray:
        kept = np.pad(mask | ~valid, 1)
        eroded = ndimage.binary_erosion(kept, np.ones((3, 3)), iterations=width)[1:-1, 1:-1]
        return mask & ~eroded

    ours, theirs = band((predicted == index) & valid), band(target == index)
    return int((ours & theirs).sum()), int((ours | theirs).sum())


@given(
    seed=st.integers(0, 1000),
    size=st.sampled_from([(40, 60), (150, 200), (33, 17), (1, 50)]),
    ignored=st.sampled_from([0.0, 0.3]),
)
def test_equal_to_distance_transform_and_erosion(seed: int, size: tuple[int, int], ignored: float) -> None:
    rng = np.random.default_rng(seed)
    target, predicted = blobs(rng, size, 4), blobs(rng, size, 4)
    keep = ndimage.gaussian_filter(rng.random(size), 4) > 0.5
    predicted = np.where(keep, target, predicted)  # partly right
    fog = ndimage.gaussian_filter(rng.random(size), 3)
    target[fog < np.quantile(fog, ignored)] = 255
    assert (target == 255).any() == (ignored > 0)
    found = boundary_counts(target, predicted, 5)
    for index in range(5):
        if (target == index).any():
            assert found.f_score[index] == pytest.approx(expected_f(target, predicted, index))
        else:
            assert np.isnan(found.f_score[index])
        pair = int(found.band_hits[index]), int(found.band_union[index])
        assert pair == expected_bands(target, predicted, index)


def test_perfect_prediction_scores_one() -> None:
    target = blobs(np.random.default_rng(3), (80, 100), 3)
    scores = BoundaryScores.gather([boundary_counts(target, target, 4)], tuple("abcd"))
    assert scores.mean_f_score == scores.miou == 1.0
    assert scores.to_dict()["f_score"]["d"] is None  # absent: left out of the means


@pytest.mark.parametrize(("shift", "expected"), [(1, 1.0), (2, 0.0)])
def test_tolerance_is_a_share_of_the_diagonal(shift: int, expected: float) -> None:
    """Two half planes at 120x160 (diagonal 200, tolerance 1.5): a line moved by 1 is met, by 2 is missed."""
    target = np.zeros((120, 160), np.uint8)
    target[:, 80:] = 1
    predicted = np.roll(target, shift, axis=1)
    predicted[:, :shift] = 0
    assert boundary_counts(target, predicted, 2).f_score.tolist() == [expected, expected]


def test_boundary_iou_closed_form() -> None:
    """A square of 40 inside 300x400 (diagonal 500, d = 10): its band is 40² - 20². Moved by 5, bands share less."""
    target, predicted = np.zeros((2, 300, 400), np.uint8)
    target[100:140, 100:140] = 1
    predicted[100:140, 105:145] = 1
    found = boundary_counts(target, predicted, 2)
    # The squares share 40 x 35; of it, what either hole (20 x 20) covers is not shared: 2 * 400 - 20 * 15.
    hits = 40 * 35 - (2 * 400 - 20 * 15)
    assert found.band_hits[1] == hits
    assert found.band_union[1] == 2 * (1600 - 400) - hits


def test_a_missed_contour_scores_zero_and_an_invented_class_costs_its_neighbours() -> None:
    target = np.zeros((60, 80), np.uint8)
    target[20:40, 20:40] = 1
    missed = boundary_counts(target, np.zeros_like(target), 3)
    assert missed.f_score[:2].tolist() == [0.0, 0.0]
    invented = target.copy()
    invented[5:10, 60:70] = 2
    found = boundary_counts(target, invented, 3)
    assert found.f_score[1] == 1.0
    assert 0 < found.f_score[0] < 1
    assert np.isnan(found.f_score[2])
    assert found.band_union[2] == 5 * 10 - 1 * 6  # d = 2


def test_means_over_images_and_classes() -> None:
    """F: mean over images of the mean over each one's classes; boundary IoU: from summed counts."""
    nan = np.nan
    scores = BoundaryScores(
        np.array([[1.0, 0.5, nan], [0.0, nan, nan]]), np.array([30, 10, 0]), np.array([60, 40, 7]), ("a", "b", "c")
    )
    assert scores.mean_f_score == pytest.approx((0.75 + 0.0) / 2)
    assert scores.f_score[:2].tolist() == [0.5, 0.5]
    assert scores.miou == pytest.approx((0.5 + 0.25) / 2)
    assert np.isnan(scores.iou[2])
