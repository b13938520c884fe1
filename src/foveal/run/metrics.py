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


@dataclass(frozen=True)
class SegmentScores:
    """Data-set level scores. Classes without a pixel in the targets are left out of the mean and named.

    Attributes:
        confusion: int64 ``(C, C)``, rows are targets.
        names: class names.
    """

    confusion: NDArray[np.int64]
    names: tuple[str, ...]

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union per class; NaN for classes absent from the targets."""
        hits = np.diag(self.confusion).astype(np.float64)
        union = self.confusion.sum(0) + self.confusion.sum(1) - hits
        present = self.confusion.sum(1) > 0
        return np.divide(hits, union, out=np.full(len(hits), np.nan), where=present)

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur, NaN if none does."""
        return float(np.nanmean(self.iou)) if np.isfinite(self.iou).any() else float("nan")

    @property
    def headline(self) -> tuple[str, float]:
        return "miou", self.miou

    @property
    def pixel_accuracy(self) -> float:
        total = self.confusion.sum()
        return float(np.trace(self.confusion) / total) if total else float("nan")

    @property
    def absent(self) -> tuple[str, ...]:
        return tuple(name for name, row in zip(self.names, self.confusion.sum(1), strict=True) if row == 0)

    def to_dict(self) -> dict:
        iou = {n: None if np.isnan(v) else round(float(v), 6) for n, v in zip(self.names, self.iou, strict=True)}
        return {
            "miou": round(self.miou, 6),
            "pixel_accuracy": round(self.pixel_accuracy, 6),
            "iou": iou,
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
