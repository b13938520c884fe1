"""Compare two models by a paired bootstrap over the images of one data set."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DataError
from .metrics import iou_of_counts, mean_of_known
from .report import REPORT
from .segment import Evaluation

_CHUNK = 256  # resamples at a time


@dataclass(frozen=True)
class Comparison:
    """Result of comparing two evaluations of the same images.

    Attributes:
        miou_a: mIoU of the first model.
        miou_b: mIoU of the second model.
        low: lower end of the 95 % interval of the difference B - A.
        high: upper end of that interval.
        p: two-sided p-value of the hypothesis "no difference".
        images: number of images.
        resamples: number of bootstrap resamples.
        seed: seed of the random numbers.
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

    def to_dict(self) -> dict[str, Any]:
        """All figures, ready for JSON."""
        return {"difference": self.difference, **dataclasses.asdict(self)}


def compare(
    a: str | Path | Evaluation, b: str | Path | Evaluation, *, resamples: int = 10_000, seed: int = 0
) -> Comparison:
    """Compare two segmentation models by a paired bootstrap over images.

    Images are drawn with replacement, with the same draw for both models. The pixel counts of a draw are summed, and
    the sums give the two mIoUs, as for the data set itself. The interval lies between the percentiles 2.5 and 97.5 of
    the differences. p is twice the smaller share of draws on one side of zero, with one draw added to each side.
    Sources: Efron and Tibshirani, "An introduction to the bootstrap", 1993, chapter 13; Davison and Hinkley, "Bootstrap
    methods and their application", 1997, 4.2 (the added draw).

    The result says how much the choice of test images matters. It does not cover training seeds, each of which gives
    another model: to compare architectures, compare several trained models.

    Args:
        a: evaluation of the first model, or the folder or ``report.json`` that ``foveal evaluate --out`` wrote.
        b: the same for the second model.
        resamples: number of draws, at least 100.
        seed: seed of the draws, 0 or more. The same seed gives the same figures.

    Returns:
        Both mIoUs, the interval of their difference, and p.

    Raises:
        ConfigError: fewer than 100 resamples, or a negative seed.
        DataError: a file is not a report of a segmentation model, or the two do not have the same images and labels.
    """
    if resamples < 100:
        raise ConfigError(f"resamples={resamples}: at least 100 are needed for an interval")
    if seed < 0:
        raise ConfigError(f"seed={seed}: give 0 or more")
    names_a, counts_a = _read_counts(a)
    names_b, counts_b = _read_counts(b)
    _check_same(names_a, counts_a, names_b, counts_b)
    differences = _resample(counts_a, counts_b, resamples, seed)
    if not len(differences):
        raise DataError("the reports hold no labelled pixel: nothing to compare")
    low, high = np.percentile(differences, [2.5, 97.5])
    side = min((differences <= 0).sum(), (differences >= 0).sum())
    p = min(1.0, 2 * (side + 1) / (len(differences) + 1))
    miou_a, miou_b = float(_miou(counts_a.sum(0))), float(_miou(counts_b.sum(0)))
    return Comparison(miou_a, miou_b, float(low), float(high), float(p), len(counts_a), resamples, seed)


def _resample(
    counts_a: NDArray[np.int64], counts_b: NDArray[np.int64], resamples: int, seed: int
) -> NDArray[np.float64]:
    """mIoU of B minus mIoU of A in each draw of images; draws without a labelled pixel are left out."""
    images, shape = len(counts_a), counts_a.shape[1:]
    flat = np.concatenate([counts_a.reshape(images, -1), counts_b.reshape(images, -1)], axis=1).astype(np.float64)
    rng = np.random.default_rng(seed)
    differences = np.empty(resamples)
    for start in range(0, resamples, _CHUNK):
        draws = min(_CHUNK, resamples - start)
        times = rng.multinomial(images, np.full(images, 1 / images), size=draws)
        first, second = np.split(times @ flat, 2, axis=1)  # exact: all are whole numbers below 2**53
        differences[start : start + draws] = _miou(second.reshape(-1, *shape)) - _miou(first.reshape(-1, *shape))
    return differences[np.isfinite(differences)]


def _miou(counts: NDArray) -> NDArray[np.float64]:
    return mean_of_known(iou_of_counts(counts))


def _read_counts(source: str | Path | Evaluation) -> tuple[list[str], NDArray[np.int64]]:
    """Names of the images and their pixel counts, ``(N, 3, C)``."""
    if isinstance(source, Evaluation):
        return [image.image for image in source.per_image], np.stack([image.counts for image in source.per_image])
    path = Path(source)
    path = path / REPORT if path.is_dir() else path
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["per_image"]
        counts = np.array([[row["hits"], row["labelled"], row["predicted"]] for row in rows], np.int64)
        if counts.ndim != 3 or counts.min() < 0:
            raise ValueError("counts of a wrong shape")
        return [str(row["image"]) for row in rows], counts
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; foveal evaluate --out FOLDER writes it") from error
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise DataError(
            f"{path}: not a report of foveal evaluate --out for a segmentation model ({type(error).__name__}: {error})"
        ) from error


def _check_same(names_a: list[str], a: NDArray[np.int64], names_b: list[str], b: NDArray[np.int64]) -> None:
    """Check that both reports are of the same images and labels.

    Raises:
        DataError: they are not.
    """
    single = sorted(set(names_a) ^ set(names_b))
    if single:
        raise DataError(
            f"the reports are not of the same images: {len(single)} are in one report only, first: {single[0]}; "
            "evaluate both models on the same split"
        )
    if names_a != names_b or a.shape != b.shape:
        raise DataError(
            "the reports are not of the same data: the order of the images or the number of classes differs; "
            "evaluate both models on the same data"
        )
    changed = (a[:, 1] != b[:, 1]).any(1)
    if changed.any():
        name = names_a[int(changed.argmax())]
        raise DataError(f"the reports were made with different labels: {name} differs; evaluate both models again")
