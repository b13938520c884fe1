"""Which of two models is better, and how sure that is: a paired bootstrap over the images of one data set."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DataError
from .metrics import iou_of_counts, mean_of_known
from .report import REPORT
from .segment import Evaluation

_CHUNK = 256  # resamples at a time


@dataclass(frozen=True)
class Comparison:
    """Two evaluations of the same images.

    Attributes:
        miou_a: of the first.
        miou_b: of the second.
        low: lower end of the 95 % interval of the difference B - A.
        high: upper end.
        p: two-sided p-value of "no difference".
        images: how many both have.
        resamples: how often the images were drawn.
        seed: of the draws.
    """

    miou_a: float
    miou_b: float
    low: float
    high: float
    p: float
    images: int
    resamples: int
    seed: int

    @property
    def difference(self) -> float:
        """mIoU of B minus mIoU of A."""
        return self.miou_b - self.miou_a

    def to_dict(self) -> dict:
        return {"difference": self.difference, **dataclasses.asdict(self)}


def compare(
    a: str | Path | Evaluation, b: str | Path | Evaluation, *, resamples: int = 10_000, seed: int = 0
) -> Comparison:
    """Compare two models by a paired bootstrap over images.

    The images are drawn with replacement, the same draw for both; the counts of a draw are summed and give the two
    mIoUs, as over the data set itself. The interval is between the percentiles 2.5 and 97.5 of the differences; p is
    twice the smaller share of draws on one side of zero, with one draw added to each. Sources: Efron and Tibshirani,
    "An introduction to the bootstrap", 1993, chapter 13; Davison and Hinkley, "Bootstrap methods and their
    application", 1997, 4.2 (the added draw).

    What it tells is how much the choice of test images matters. Another training seed is another model: compare
    several.

    Args:
        a: evaluation, or the folder or ``report.json`` that ``foveal evaluate --out`` wrote.
        b: the other.
        resamples: how many draws.
        seed: the same seed gives the same figures.

    Raises:
        ConfigError: fewer than 100 resamples, or a negative seed.
        DataError: not a report, or the two are not of the same labels.
    """
    if resamples < 100:
        raise ConfigError(f"resamples={resamples}: at least 100 are needed for an interval")
    if seed < 0:
        raise ConfigError(f"seed={seed}: give 0 or more")
    names_a, counts_a = _counts(a)
    names_b, counts_b = _counts(b)
    _check_same(names_a, counts_a, names_b, counts_b)
    images, shape = len(counts_a), counts_a.shape[1:]
    flat = np.concatenate([counts_a.reshape(images, -1), counts_b.reshape(images, -1)], axis=1).astype(np.float64)
    rng = np.random.default_rng(seed)
    differences = np.empty(resamples)
    for start in range(0, resamples, _CHUNK):
        draws = min(_CHUNK, resamples - start)
        times = rng.multinomial(images, np.full(images, 1 / images), size=draws)
        first, second = np.split(times @ flat, 2, axis=1)  # whole numbers below 2**53: exact
        differences[start : start + draws] = _miou(second.reshape(-1, *shape)) - _miou(first.reshape(-1, *shape))
    differences = differences[np.isfinite(differences)]  # a draw of images without any label has no mIoU
    if not len(differences):
        raise DataError("the reports hold no labelled pixel: nothing to compare")
    low, high = np.percentile(differences, [2.5, 97.5])
    side = min((differences <= 0).sum(), (differences >= 0).sum())
    p = min(1.0, 2 * (side + 1) / (len(differences) + 1))
    miou_a, miou_b = float(_miou(counts_a.sum(0))), float(_miou(counts_b.sum(0)))
    return Comparison(miou_a, miou_b, float(low), float(high), float(p), images, resamples, seed)


def _miou(counts: NDArray) -> NDArray[np.float64]:
    return mean_of_known(iou_of_counts(counts))


def _counts(source: str | Path | Evaluation) -> tuple[list[str], NDArray[np.int64]]:
    """Names of the images and their counts, ``(N, 3, C)``."""
    if isinstance(source, Evaluation):
        return [image.image for image in source.per_image], np.stack([image.counts for image in source.per_image])
    path = Path(source)
    path = path / REPORT if path.is_dir() else path
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["per_image"]
        counts = np.array([[row["hits"], row["labelled"], row["predicted"]] for row in rows], np.int64)
        if counts.ndim != 3 or counts.min() < 0:
            raise ValueError("counts of another shape")
        return [str(row["image"]) for row in rows], counts
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; foveal evaluate --out FOLDER writes it") from error
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise DataError(f"{path}: not a report of foveal evaluate --out ({type(error).__name__}: {error})") from error


def _check_same(names_a: list[str], a: NDArray[np.int64], names_b: list[str], b: NDArray[np.int64]) -> None:
    only = sorted(set(names_a) ^ set(names_b))
    if only:
        raise DataError(f"the reports are not of the same images: {len(only)} are in one only, first: {only[0]}")
    if names_a != names_b or a.shape != b.shape:
        raise DataError("the reports are not of the same data: the order of the images or the classes differ")
    changed = (a[:, 1] != b[:, 1]).any(1)
    if changed.any():
        raise DataError(f"the reports were made with other labels: {names_a[int(changed.argmax())]} differs")
