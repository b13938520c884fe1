"""The paired bootstrap gives what exact enumeration, theory and scipy give."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

import foveal
from foveal.evaluation.compare import compare
from foveal.evaluation.metrics import SegmentScores
from foveal.evaluation.segment import Evaluation, ImageScore

PIXELS = 1000


def evaluation(hits: NDArray, classes: int = 2) -> Evaluation:
    """Images of 1,000 pixels of class 0 with the given hits; what is missed is called class 1, which has no pixels.

    IoU of class 0 is then hits / 1,000 and the only one, so that mIoU is a plain mean over images.
    """
    counts = np.zeros((len(hits), 3, classes), np.int64)
    counts[:, 0, 0] = counts[:, 2, 0] = hits
    counts[:, 1, 0] = PIXELS
    counts[:, 2, 1] = PIXELS - hits
    matrix = np.zeros((classes, classes), np.int64)
    matrix[0, :2] = hits.sum(), (PIXELS - hits).sum()
    images = tuple(ImageScore(f"test/{i}.png", c) for i, c in enumerate(counts))
    return Evaluation(SegmentScores(matrix, tuple("abcdef"[:classes])), images, "test", None)


def test_equal_to_scipy_and_to_theory() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(300, 700, 200)
    second = first + rng.integers(-100, 112, 200)
    found = compare(evaluation(first), evaluation(second), resamples=20_000)
    change = (second - first) / PIXELS
    assert found.difference == pytest.approx(change.mean())
    assert (found.miou_a, found.miou_b) == pytest.approx((first.mean() / PIXELS, second.mean() / PIXELS))
    peer = stats.bootstrap((change,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    spread = change.std() / np.sqrt(200)
    assert (found.low, found.high) == pytest.approx((peer.low, peer.high), abs=0.05 * spread)
    assert (found.low, found.high) == pytest.approx(tuple(change.mean() + 1.96 * spread * np.array([-1, 1])), abs=2e-4)
    theory = 2 * stats.norm.sf(abs(change.mean()) / spread)
    assert 0.03 < theory < 0.05
    assert found.p == pytest.approx(theory, rel=0.15)


def test_equal_to_every_draw_of_three_images() -> None:
    """27 equally likely draws, not a mean but a ratio of sums: two classes with false positives."""
    rng = np.random.default_rng(5)
    pair = []
    labelled = rng.integers(50, 400, (3, 2))
    for _ in range(2):
        matrices = np.zeros((3, 2, 2), np.int64)
        for matrix, row in zip(matrices, labelled, strict=True):
            missed = rng.integers(0, 50, 2)
            matrix[:] = [[row[0] - missed[0], missed[0]], [missed[1], row[1] - missed[1]]]
        counts = np.stack([np.stack([np.diag(m), m.sum(1), m.sum(0)]) for m in matrices])
        images = tuple(ImageScore(str(i), c) for i, c in enumerate(counts))
        pair.append((matrices, Evaluation(SegmentScores(matrices.sum(0), ("a", "b")), images, "test", None)))
    draws = []
    for draw in itertools.product(range(3), repeat=3):
        mious = [SegmentScores(matrices[list(draw)].sum(0), ("a", "b")).miou for matrices, _ in pair]
        draws.append(mious[1] - mious[0])
    found = compare(pair[0][1], pair[1][1], resamples=50_000)
    assert found.difference == pytest.approx(pair[1][1].miou - pair[0][1].miou)
    assert min(draws) - 1e-12 <= found.low <= found.high <= max(draws) + 1e-12
    # The extreme draws have 1/27 each, more than 2.5 %: they are the interval's ends.
    assert (found.low, found.high) == pytest.approx((min(draws), max(draws)))
    share = min(np.mean(np.array(draws) <= 0), np.mean(np.array(draws) >= 0))
    assert found.p == pytest.approx(min(1, 2 * share), abs=0.01)


def test_a_model_against_itself() -> None:
    one = evaluation(np.array([10, 500, 900]))
    found = compare(one, one)
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_paired_draws_see_a_small_steady_gain() -> None:
    """Images differ by far more than the models: unpaired draws could not tell. p can not fall below 2 / (n + 1)."""
    first = np.random.default_rng(1).integers(100, 900, 60)
    found = compare(evaluation(first), evaluation(first + 5), resamples=1000)
    assert (found.low, found.high) == pytest.approx((0.005, 0.005))
    assert found.p == pytest.approx(2 / 1001)


def test_seeded() -> None:
    rng = np.random.default_rng(2)
    pair = [evaluation(rng.integers(0, 1000, 30)) for _ in range(2)]
    first, again, other = (compare(*pair, resamples=500, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert (first.low, first.high) != (other.low, other.high)


def test_reports_on_disk_are_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    pair = [evaluation(rng.integers(0, 1000, 20)) for _ in range(2)]
    for name, found in zip("ab", pair, strict=True):
        found.save(tmp_path / name)
    assert foveal.compare(tmp_path / "a", tmp_path / "b" / "report.json") == foveal.compare(*pair)


def test_reports_that_cannot_be_compared_are_explained(tmp_path: Path) -> None:
    one = evaluation(np.array([10, 500, 900]))
    with pytest.raises(foveal.DataError, match=r"2 are in one report only, first: test/3\.png"):
        compare(one, evaluation(np.array([1, 2, 3, 4, 5])))
    with pytest.raises(foveal.ConfigError, match="seed=-1: give 0 or more"):
        compare(one, one, seed=-1)
    empty = evaluation(np.zeros(3, int))
    for image in empty.per_image:
        image.counts[:] = 0
    with pytest.raises(foveal.DataError, match="no labelled pixel: nothing to compare"):
        compare(empty, empty)
    with pytest.raises(foveal.DataError, match="the number of classes differs"):
        compare(one, evaluation(np.array([10, 500, 900]), classes=3))
    changed = evaluation(np.array([10, 500, 900]))
    changed.per_image[1].counts[1, 0] -= 1
    with pytest.raises(foveal.DataError, match=r"different labels: test/1\.png differs"):
        compare(one, changed)
    with pytest.raises(foveal.DataError, match="foveal evaluate --out"):
        compare(tmp_path / "none", one)
    with pytest.raises(foveal.ConfigError, match="at least 100"):
        compare(one, one, resamples=10)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"per_image": []}',
        '{"per_image": [{"image": "a"}]}',
        json.dumps({"per_image": [{"image": "a", "hits": [1], "labelled": [1, 2], "predicted": [1]}]}),
        json.dumps({"per_image": [{"image": "a", "hits": [-1], "labelled": [1], "predicted": [1]}]}),
        json.dumps({"per_image": [{"image": "a", "hits": [1e30], "labelled": [1], "predicted": [1]}]}),
    ],
)
def test_broken_reports_are_explained(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(foveal.DataError, match="not a report"):
        compare(tmp_path, tmp_path)
