"""How well contours are met: boundary F-score and boundary IoU, per class, without a word on the areas inside.

Ignored pixels are neutral in both: no contour runs between a class and ignored pixels, and no point lies on them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..info import IGNORE
from .metrics import by_name, json_number, mean_of_known, share

TOLERANCE = 0.0075  #: of the F-score, as a share of the image's diagonal (Csurka et al. 2013)
BAND = 0.02  #: width of the band of boundary IoU, as a share of the image's diagonal (Cheng et al. 2021)


@dataclass(frozen=True)
class BoundaryCounts:
    """What one image adds.

    Attributes:
        f_score: per class ``(C,)``, NaN for classes absent from the target.
        band_hits: pixels that both bands share, ``(C,)`` int64.
        band_union: pixels of either band, ``(C,)`` int64.
    """

    f_score: NDArray[np.float64]
    band_hits: NDArray[np.int64]
    band_union: NDArray[np.int64]


def boundary_counts(target: NDArray[np.uint8], predicted: NDArray[np.integer], num_classes: int) -> BoundaryCounts:
    """Compare the contours of one image.

    F-score: a class's contour is its pixels with another class among the four neighbours (the image's frame is none).
    Precision is the share of the predicted contour within ``TOLERANCE`` (Euclidean) of the target's, recall the
    reverse, the score their harmonic mean; an empty contour has precision 1, and recall 1. Sources: Csurka et al.,
    "What is a good evaluation measure for semantic segmentation?", BMVC 2013; Perazzi et al., "A benchmark dataset and
    evaluation methodology for video object segmentation", CVPR 2016 (empty contours).

    Boundary IoU: the intersection over union of the two inner bands, the pixels of the class at most
    d = max(1, round(BAND x diagonal)) rows and columns from a pixel that is not of it; the image's frame bounds too.
    Source: Cheng et al., "Boundary IoU", CVPR 2021, arXiv 2103.16562.

    Args:
        target: class ids ``(H, W)``, 255 = ignore.
        predicted: class ids ``(H, W)``.
        num_classes: C.
    """
    valid = target != IGNORE
    diagonal = math.hypot(*target.shape)
    width = max(1, round(BAND * diagonal))
    f_score = np.full(num_classes, np.nan)
    band_hits, band_union = np.zeros((2, num_classes), np.int64)
    for index in np.unique(np.r_[target[valid], predicted[valid]]):
        ours, theirs = (predicted == index) & valid, (target == index) & valid
        window = _window(ours | theirs, width)
        seen, ours, theirs = valid[window], ours[window], theirs[window]
        if theirs.any():
            f_score[index] = _f_score(_contour(ours, seen), _contour(theirs, seen), TOLERANCE * diagonal)
        bands = _band(ours, seen, width), _band(theirs, seen, width)
        band_hits[index], band_union[index] = (bands[0] & bands[1]).sum(), (bands[0] | bands[1]).sum()
    return BoundaryCounts(f_score, band_hits, band_union)


@dataclass(frozen=True)
class BoundaryScores:
    """Data-set level scores; classes absent from the targets are left out of the means.

    Attributes:
        f_scores: per image and class ``(N, C)``, NaN for classes absent from an image.
        band_hits: over all images, ``(C,)``.
        band_union: over all images, ``(C,)``.
        names: class names.
    """

    f_scores: NDArray[np.float64]
    band_hits: NDArray[np.int64]
    band_union: NDArray[np.int64]
    names: tuple[str, ...]

    @classmethod
    def gather(cls, images: list[BoundaryCounts], names: tuple[str, ...]) -> BoundaryScores:
        """Gather the counts of at least one image."""
        hits, union = (sum(values) for values in zip(*((i.band_hits, i.band_union) for i in images), strict=True))
        return cls(np.stack([image.f_score for image in images]), np.asarray(hits), np.asarray(union), names)

    @property
    def f_score(self) -> NDArray[np.float64]:
        """Per class: mean over the images that it occurs in."""
        return mean_of_known(self.f_scores.T)

    @property
    def mean_f_score(self) -> float:
        """Mean over the images of each one's mean over its classes (Csurka et al.)."""
        return float(mean_of_known(mean_of_known(self.f_scores)))

    @property
    def iou(self) -> NDArray[np.float64]:
        """Boundary IoU per class, from counts over all images, as IoU is."""
        present = np.isfinite(self.f_scores).any(0)
        return share(self.band_hits, self.band_union, present & (self.band_union > 0))

    @property
    def miou(self) -> float:
        """Mean boundary IoU over the classes that occur."""
        return float(mean_of_known(self.iou))

    def to_dict(self) -> dict:
        return {
            "mean_f_score": json_number(self.mean_f_score),
            "boundary_miou": json_number(self.miou),
            "f_score": by_name(self.names, self.f_score),
            "boundary_iou": by_name(self.names, self.iou),
            "tolerance": TOLERANCE,
            "band": BAND,
        }


def boundary_iou(target: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> float:
    """Boundary IoU of one object ``(H, W)`` with its prediction (Cheng et al. 2021, see above); both empty: NaN."""
    if not (target.any() or predicted.any()):
        return math.nan
    width = max(1, round(BAND * math.hypot(*target.shape)))
    window = _window(target | predicted, width)
    seen = np.ones_like(target[window])
    ours, theirs = _band(predicted[window], seen, width), _band(target[window], seen, width)
    return float((ours & theirs).sum() / (ours | theirs).sum())


def _window(mask: NDArray[np.bool_], margin: int) -> tuple[slice, slice]:
    """Rows and columns of what is set, and ``margin`` more where the image has them."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (
        slice(max(0, rows[0] - margin), rows[-1] + margin + 1),
        slice(max(0, columns[0] - margin), columns[-1] + margin + 1),
    )


def _contour(mask: NDArray[np.bool_], valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    other = np.pad(valid & ~mask, 1)
    return mask & (other[:-2, 1:-1] | other[2:, 1:-1] | other[1:-1, :-2] | other[1:-1, 2:])


def _f_score(ours: NDArray[np.bool_], theirs: NDArray[np.bool_], tolerance: float) -> float:
    precision, recall = _share_near(ours, theirs, tolerance), _share_near(theirs, ours, tolerance)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _share_near(points: NDArray[np.bool_], others: NDArray[np.bool_], tolerance: float) -> float:
    """Share of ``points`` with one of ``others`` at a Euclidean distance of at most ``tolerance`` pixels; none: 1."""
    y, x = np.nonzero(points)
    if not len(y):
        return 1.0
    reach, far = int(tolerance), int(tolerance) + 1
    # Distance to the nearest in each column first; a disc is then a matter of 2 * reach + 1 columns.
    row = np.arange(len(points), dtype=np.int32)[:, None]
    above = np.maximum.accumulate(np.where(others, row, -far), axis=0)
    below = np.minimum.accumulate(np.where(others, row, len(points) + far)[::-1], axis=0)[::-1]
    gap = np.pad(np.minimum(np.minimum(row - above, below - row), far), ((0, 0), (reach, reach)), constant_values=far)
    near = np.zeros(len(y), bool)
    for step in range(-reach, reach + 1):
        near |= gap[y, x + reach + step] ** 2 + step**2 <= tolerance**2
    return float(near.mean())


def _band(mask: NDArray[np.bool_], valid: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Pixels of ``mask`` with another class, or the outside, in the square of ``width`` pixels around them.

    ``mask`` has that margin on all sides that are not the image's frame, so that the outside is seen nowhere else.
    """
    other = np.pad(valid & ~mask, width, constant_values=True)
    total = np.pad(other.cumsum(0, np.int32).cumsum(1, np.int32), ((1, 0), (1, 0)))
    side = 2 * width + 1
    inside = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    return mask & (inside > 0)
