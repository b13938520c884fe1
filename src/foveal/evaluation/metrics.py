"""Figures of merit, from integer counts over the whole data set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..info import IGNORE


def confusion_matrix(target: NDArray, predicted: NDArray, num_classes: int, ignore: int = IGNORE) -> NDArray[np.int64]:
    """Count pixels: ``matrix[t, p]`` with target class t and predicted class p; ignored targets are left out.

    Args:
        target: class ids, any shape; ``ignore`` is skipped.
        predicted: class ids of the same shape, all below ``num_classes``.
    """
    valid = target != ignore
    pairs = target[valid].astype(np.int64) * num_classes + predicted[valid]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_counts(confusion: NDArray[np.int64]) -> NDArray[np.int64]:
    """What IoU and accuracy need of a ``(C, C)`` confusion matrix: ``(3, C)`` pixels hit, labelled and predicted."""
    return np.stack([np.diag(confusion), confusion.sum(1), confusion.sum(0)])


def iou_of_counts(counts: NDArray) -> NDArray[np.float64]:
    """Intersection over union, ``(..., C)``, from ``(..., 3, C)`` counts; NaN for classes absent from the targets."""
    hits, labelled, predicted = np.moveaxis(counts, -2, 0)
    return share(hits, labelled + predicted - hits, labelled > 0)


def share(part: NDArray, whole: NDArray, known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """``part / whole`` where ``known``, else NaN."""
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=known)


def mean_of_known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis of what is not NaN; NaN where nothing is."""
    known = np.isfinite(values)
    return share(np.where(known, values, 0).sum(-1), known.sum(-1), np.asarray(known.any(-1)))


@dataclass(frozen=True)
class SegmentScores:
    """Data-set level scores. Classes without a pixel in the targets are left out of the means and named.

    Attributes:
        confusion: int64 ``(C, C)``, rows are targets.
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
        """Mean IoU over the classes that occur, NaN if none does."""
        return float(mean_of_known(self.iou))

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """Share of each class's pixels that were found (recall); NaN for classes absent from the targets."""
        labelled = self.confusion.sum(1)
        return share(np.diag(self.confusion), labelled, labelled > 0)

    @property
    def mean_accuracy(self) -> float:
        """Mean of :attr:`accuracy` over the classes that occur, NaN if none does."""
        return float(mean_of_known(self.accuracy))

    @property
    def headline(self) -> tuple[str, float]:
        return "miou", self.miou

    @property
    def pixel_accuracy(self) -> float:
        """Share of all labelled pixels whose class was found."""
        total = self.confusion.sum()
        return float(np.trace(self.confusion) / total) if total else float("nan")

    @property
    def absent(self) -> tuple[str, ...]:
        return tuple(name for name, row in zip(self.names, self.confusion.sum(1), strict=True) if row == 0)

    def to_dict(self) -> dict:
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
    """How many images were classified, and how many rightly by the first and by one of the first five guesses."""

    images: int
    first: int
    five: int

    @property
    def headline(self) -> tuple[str, float]:
        return "top1", self.first / self.images if self.images else float("nan")

    def to_dict(self) -> dict:
        return {"top1": round(self.first / self.images, 6), "top5": round(self.five / self.images, 6)}


def by_name(names: tuple[str, ...], values: NDArray[np.float64]) -> dict[str, float | None]:
    """One JSON number per class, ``None`` for NaN."""
    return dict(zip(names, map(json_number, values.tolist()), strict=True))


def json_number(value: float) -> float | None:
    """A JSON number of 6 digits, ``None`` for NaN."""
    return None if np.isnan(value) else round(float(value), 6)


def in_words(metric: str, value: float) -> str:
    """A validation figure for people: "miou 63.42%", "psnr 37.20 dB"."""
    return f"{metric} {value:.2f} dB" if metric == "psnr" else f"{metric} {value:.2%}"
