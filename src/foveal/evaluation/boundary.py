"""Scores of contours: boundary F-score and boundary IoU per class. Interiors are not scored.

Ignored pixels affect neither score: the border between a class and ignored pixels is not a contour, and ignored pixels
are never contour pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..info import ignore_id
from .metrics import by_name, json_number, mean_of_known, share

TOLERANCE = 0.0075  #: distance that the F-score tolerates, as a share of the image's diagonal (Csurka et al. 2013)
BAND = 0.02  #: width of the band that boundary IoU compares, as a share of the image's diagonal (Cheng et al. 2021)


@dataclass(frozen=True)
class BoundaryCounts:
    """Counts of one image, per class.

    Attributes:
        f_score: boundary F-score, ``(C,)``; NaN for classes absent from the target.
        band_hits: pixels in both bands (intersection), ``(C,)`` int64.
        band_union: pixels in at least one band, ``(C,)`` int64.
    """

    f_score: NDArray[np.float64]
    band_hits: NDArray[np.int64]
    band_union: NDArray[np.int64]


def boundary_counts(target: NDArray[np.uint8], predicted: NDArray[np.integer], num_classes: int) -> BoundaryCounts:
    """Compare the contours of one image.

    F-score: the contour of a class is its pixels that have another class among their four neighbours; the image's frame
    is not a contour. Precision is the share of the predicted contour within ``TOLERANCE`` (Euclidean distance) of the
    target's contour, recall is the reverse, and the score is their harmonic mean. An empty predicted contour has
    precision 1, an empty target contour recall 1. Sources: Csurka et al., "What is a good evaluation measure for
    semantic segmentation?", BMVC 2013; Perazzi et al., "A benchmark dataset and evaluation methodology for video object
    segmentation", CVPR 2016 (empty contours).

    Boundary IoU: intersection over union of the two inner bands. The inner band is the pixels of the class at most
    d = max(1, round(BAND x diagonal)) rows and columns from a pixel outside the class; the image's frame counts as
    outside. Source: Cheng et al., "Boundary IoU", CVPR 2021, arXiv 2103.16562.

    Args:
        target: class ids ``(H, W)``, 255 = ignore (:func:`~foveal.info.ignore_id`).
        predicted: class ids ``(H, W)``.
        num_classes: C.

    Returns:
        The F-score and the pixels of the bands, per class.
    """
    valid = target != ignore_id(num_classes)
    diagonal = math.hypot(*target.shape)
    width = max(1, round(BAND * diagonal))
    f_score = np.full(num_classes, np.nan)
    band_hits, band_union = np.zeros((2, num_classes), np.int64)
    for index in np.unique(np.r_[target[valid], predicted[valid]]):
        guess, truth = (predicted == index) & valid, (target == index) & valid
        window = _window(guess | truth, width)
        inside, guess, truth = valid[window], guess[window], truth[window]
        if truth.any():
            f_score[index] = _f_score(_contour(guess, inside), _contour(truth, inside), TOLERANCE * diagonal)
        bands = _band(guess, inside, width), _band(truth, inside, width)
        band_hits[index], band_union[index] = (bands[0] & bands[1]).sum(), (bands[0] | bands[1]).sum()
    return BoundaryCounts(f_score, band_hits, band_union)


@dataclass(frozen=True)
class BoundaryScores:
    """Scores over a whole data set; classes absent from the targets are left out of means.

    Attributes:
        f_scores: boundary F-score per image and class, ``(N, C)``; NaN for classes absent from an image's target.
        band_hits: pixels in both bands, over all images, ``(C,)``.
        band_union: pixels in at least one band, over all images, ``(C,)``.
        names: class names.
    """

    f_scores: NDArray[np.float64]
    band_hits: NDArray[np.int64]
    band_union: NDArray[np.int64]
    names: tuple[str, ...]

    @classmethod
    def gather(cls, images: list[BoundaryCounts], names: tuple[str, ...]) -> BoundaryScores:
        """Combine the counts of one or more images."""
        hits, union = (sum(values) for values in zip(*((i.band_hits, i.band_union) for i in images), strict=True))
        return cls(np.stack([image.f_score for image in images]), np.asarray(hits), np.asarray(union), names)

    @property
    def f_score(self) -> NDArray[np.float64]:
        """Boundary F-score per class: mean over the images in whose target the class occurs."""
        return mean_of_known(self.f_scores.T)

    @property
    def mean_f_score(self) -> float:
        """Mean over images of the mean over the classes of each image (Csurka et al.)."""
        return float(mean_of_known(mean_of_known(self.f_scores)))

    @property
    def iou(self) -> NDArray[np.float64]:
        """Boundary IoU per class, from counts over all images."""
        present = np.isfinite(self.f_scores).any(0)
        return share(self.band_hits, self.band_union, present & (self.band_union > 0))

    @property
    def miou(self) -> float:
        """Mean boundary IoU over the classes that occur in the targets."""
        return float(mean_of_known(self.iou))

    def to_dict(self) -> dict[str, Any]:
        """Scores and their settings, ready for JSON."""
        return {
            "mean_f_score": json_number(self.mean_f_score),
            "boundary_miou": json_number(self.miou),
            "f_score": by_name(self.names, self.f_score),
            "boundary_iou": by_name(self.names, self.iou),
            "tolerance": TOLERANCE,
            "band": BAND,
        }


def boundary_iou(target: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> float:
    """Boundary IoU of an object's mask, ``(H, W)``, and its prediction (Cheng et al. 2021); NaN if both are empty."""
    if not (target.any() or predicted.any()):
        return math.nan
    width = max(1, round(BAND * math.hypot(*target.shape)))
    window = _window(target | predicted, width)
    valid = np.ones_like(target[window])
    guess, truth = _band(predicted[window], valid, width), _band(target[window], valid, width)
    return float((guess & truth).sum() / (guess | truth).sum())


def _window(mask: NDArray[np.bool_], margin: int) -> tuple[slice, slice]:
    """Rows and columns of the set pixels, with a margin where the image has one."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (
        slice(max(0, rows[0] - margin), rows[-1] + margin + 1),
        slice(max(0, columns[0] - margin), columns[-1] + margin + 1),
    )


def _contour(mask: NDArray[np.bool_], valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of ``mask`` with a valid pixel outside it among their four neighbours."""
    other = np.pad(valid & ~mask, 1)
    return mask & (other[:-2, 1:-1] | other[2:, 1:-1] | other[1:-1, :-2] | other[1:-1, 2:])


def _f_score(predicted: NDArray[np.bool_], target: NDArray[np.bool_], tolerance: float) -> float:
    precision, recall = _share_near(predicted, target, tolerance), _share_near(target, predicted, tolerance)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _share_near(points: NDArray[np.bool_], others: NDArray[np.bool_], tolerance: float) -> float:
    """Share of ``points`` that have one of ``others`` within ``tolerance`` pixels (Euclidean); 1 without points."""
    y, x = np.nonzero(points)
    if not len(y):
        return 1.0
    reach, far = int(tolerance), int(tolerance) + 1
    # First the distance to the nearest point in each column, then its combination over the 2 * reach + 1 near columns.
    row = np.arange(len(points), dtype=np.int32)[:, None]
    above = np.maximum.accumulate(np.where(others, row, -far), axis=0)
    below = np.minimum.accumulate(np.where(others, row, len(points) + far)[::-1], axis=0)[::-1]
    gap = np.pad(np.minimum(np.minimum(row - above, below - row), far), ((0, 0), (reach, reach)), constant_values=far)
    near = np.zeros(len(y), bool)
    for step in range(-reach, reach + 1):
        near |= gap[y, x + reach + step] ** 2 + step**2 <= tolerance**2
    return float(near.mean())


def _band(mask: NDArray[np.bool_], valid: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Pixels of ``mask`` at most ``width`` rows and columns from a valid pixel outside it or from the image's frame.

    The arrays must include a margin of ``width`` pixels around the mask wherever the image has one, because their edges
    count as the image's frame.
    """
    other = np.pad(valid & ~mask, width, constant_values=True)
    total = np.pad(other.cumsum(0, np.int32).cumsum(1, np.int32), ((1, 0), (1, 0)))
    side = 2 * width + 1
    inside = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    return mask & (inside > 0)
