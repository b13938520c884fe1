"""Scores equal those of torchmetrics and stay exact; absent classes are left out and named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from foveal.evaluation.metrics import SegmentScores, confusion_matrix

NAMES = tuple("abcde")


@given(seed=st.integers(0, 1000), ignored=st.floats(0, 0.9))
def test_equal_to_torchmetrics(seed: int, ignored: float) -> None:
    """Per class, mean and pixel accuracy, with ignored pixels, over several images at once."""
    rng = np.random.default_rng(seed)
    target, predicted = rng.integers(0, 5, (2, 3, 20, 20))
    target[0, 0, :5] = np.arange(5)  # every class occurs
    hidden = rng.random(target.shape) < ignored
    hidden[0, 0, :5] = False
    target[hidden] = 255
    scores = SegmentScores(sum(confusion_matrix(t, p, 5) for t, p in zip(target, predicted, strict=True)), NAMES)  # pyright: ignore[reportArgumentType]
    tensors = torch.from_numpy(predicted), torch.from_numpy(target)
    per_class = MulticlassJaccardIndex(5, average="none", ignore_index=255)(*tensors)
    accuracy = MulticlassAccuracy(5, average="micro", ignore_index=255)(*tensors)
    assert np.allclose(scores.iou, per_class.numpy(), atol=1e-6)
    assert scores.miou == pytest.approx(float(per_class.mean()), abs=1e-6)
    assert scores.pixel_accuracy == pytest.approx(float(accuracy), abs=1e-6)
    recall = MulticlassAccuracy(5, average="none", ignore_index=255)(*tensors)
    assert np.allclose(scores.accuracy, recall.numpy(), atol=1e-6)
    assert scores.mean_accuracy == pytest.approx(float(recall.mean()), abs=1e-6)
    assert scores.absent == ()


def test_absent_classes_are_left_out_and_named() -> None:
    """Class c never occurs in the targets, so predicting it costs the others, not the mean."""
    target = np.array([0, 0, 1, 1])
    scores = SegmentScores(confusion_matrix(target, np.array([0, 2, 1, 1]), 3), ("a", "b", "c"))
    assert scores.absent == ("c",)
    assert scores.miou == pytest.approx((0.5 + 1) / 2)
    assert scores.mean_accuracy == pytest.approx((0.5 + 1) / 2)
    assert scores.to_dict()["iou"]["c"] is None


def test_nothing_labelled_gives_nan_not_an_error() -> None:
    scores = SegmentScores(confusion_matrix(np.full(4, 255), np.zeros(4, int), 2), ("a", "b"))
    assert np.isnan(scores.miou)
    assert np.isnan(scores.pixel_accuracy)
    assert np.isnan(scores.mean_accuracy)
    assert scores.to_dict()["miou"] is None  # NaN is no JSON


def test_counts_are_exact_beyond_float32() -> None:
    """16,777,217 is the first whole number that float32 does not hold."""
    matrix = np.zeros((2, 2), np.int64)
    matrix[0, 0] = 2**24
    matrix += confusion_matrix(np.zeros(1, int), np.zeros(1, int), 2)
    assert matrix[0, 0] == 2**24 + 1
    assert SegmentScores(matrix, ("a", "b")).confusion.dtype == np.int64
