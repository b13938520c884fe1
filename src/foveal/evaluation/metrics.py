"""Metrics of segmentation and classification, from integer counts over the whole data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..info import ignore_id


def confusion_matrix(
    target: NDArray, predicted: NDArray, num_classes: int, ignore: int | None = None
) -> NDArray[np.int64]:
    """Count pixels: ``matrix[t, p]`` for target class t and predicted class p, without ignored targets.

    Args:
        target: class ids, any shape.
        predicted: class ids of the same shape, all below ``num_classes``.
        num_classes: C.
        ignore: id of targets that are not counted; default: :func:`~foveal.info.ignore_id`.

    Returns:
        ``(C, C)`` int64.
    """
    valid = target != (ignore_id(num_classes) if ignore is None else ignore)
    pairs = target[valid].astype(np.int64) * num_classes + predicted[valid]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_counts(confusion: NDArray[np.int64]) -> NDArray[np.int64]:
    """Correct, labelled and predicted pixels per class, ``(3, C)``, from a ``(C, C)`` confusion matrix."""
    return np.stack([np.diag(confusion), confusion.sum(1), confusion.sum(0)])


def iou_of_counts(counts: NDArray) -> NDArray[np.float64]:
    """Intersection over union, ``(..., C)``, from ``(..., 3, C)`` counts; NaN for classes that the targets lack."""
    hits, labelled, predicted = np.moveaxis(counts, -2, 0)
    return share(hits, labelled + predicted - hits, labelled > 0)


def share(part: NDArray, whole: NDArray, known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """``part / whole`` where ``known`` is true, NaN elsewhere."""
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=known)


def mean_of_known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis without NaNs; NaN if all values are."""
    known = np.isfinite(values)
    return share(np.where(known, values, 0).sum(-1), known.sum(-1), np.asarray(known.any(-1)))


@dataclass(frozen=True)
class SegmentScores:
    """Scores over a whole data set. Classes without a pixel in the targets are in ``absent`` and left out of means.

    Attributes:
        confusion: pixels, ``(C, C)`` int64; rows are targets, columns predictions.
        names: class names.
    """

    confusion: NDArray[np.int64]
    names: tuple[str, ...]

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union per class; NaN for classes absent from the targets."""
        return iou_of_counts(class_counts(self.confusion))

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur in the targets; NaN if there is none."""
        return float(mean_of_known(self.iou))

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """Share of each class's pixels that have the right class (recall); NaN for classes absent from the targets."""
        labelled = self.confusion.sum(1)
        return share(np.diag(self.confusion), labelled, labelled > 0)

    @property
    def mean_accuracy(self) -> float:
        """Mean of :attr:`accuracy` over the classes that occur in the targets; NaN if there is none."""
        return float(mean_of_known(self.accuracy))

    @property
    def headline(self) -> tuple[str, float]:
        """The metric that training selects checkpoints by."""
        return "miou", self.miou

    @property
    def pixel_accuracy(self) -> float:
        """Share of all labelled pixels that have the right class; NaN without labelled pixels."""
        total = self.confusion.sum()
        return float(np.trace(self.confusion) / total) if total else float("nan")

    @property
    def absent(self) -> tuple[str, ...]:
        """Names of the classes without a pixel in the targets."""
        return tuple(name for name, row in zip(self.names, self.confusion.sum(1), strict=True) if row == 0)

    def to_dict(self) -> dict[str, Any]:
        """All scores, ready for JSON."""
        return {
            "miou": json_number(self.miou),
            "pixel_accuracy": json_number(self.pixel_accuracy),
            "mean_accuracy": json_number(self.mean_accuracy),
            "iou": by_name(self.names, self.iou),
            "accuracy": by_name(self.names, self.accuracy),
            "absent": list(self.absent),
        }


@dataclass(frozen=True)
class ClassifyScores:
    """Counts of classified images.

    Attributes:
        images: number of images.
        first: images whose class is the first guess.
        five: images whose class is among the first five guesses.
    """

    images: int
    first: int
    five: int

    @property
    def headline(self) -> tuple[str, float]:
        """The metric that training selects checkpoints by."""
        return "top1", self.first / self.images if self.images else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Top-1 and top-5 accuracy, ready for JSON."""
        return {"top1": round(self.first / self.images, 6), "top5": round(self.five / self.images, 6)}


def by_name(names: tuple[str, ...], values: NDArray[np.float64]) -> dict[str, float | None]:
    """One JSON number per class, ``None`` for NaN."""
    return dict(zip(names, map(json_number, values.tolist()), strict=True))


def json_number(value: float) -> float | None:
    """The value rounded to 6 decimal places for JSON, ``None`` for NaN."""
    return None if np.isnan(value) else round(float(value), 6)


def in_words(metric: str, value: float) -> str:
    """Format a validation score as text: "miou 63.42%", "psnr 37.20 dB", "rmse 0.1234"."""
    if (unit := UNITS.get(metric)) is not None:
        return f"{metric} {value:.4g} {unit}".rstrip() if metric != "psnr" else f"{metric} {value:.2f} {unit}"
    return f"{metric} {value:.2%}"


#: Units of validation scores that are no shares; empty: that of the data.
UNITS = {"psnr": "dB", "mean_angle": "degrees", "sad": "thousand pixels", "rmse": ""}
