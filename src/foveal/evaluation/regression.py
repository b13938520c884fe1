"""Errors of maps of values, by the kind of the target, from float64 sums over valid pixels.

Depth: AbsRel, RMSE, RMSE of natural logarithms and the share of ratios below 1.25, 1.25^2 and 1.25^3 (Eigen et al.,
arXiv 1406.2283, section 4.3). Normals: mean angle and the share of angles below 11.25, 22.5 and 30 degrees (Fouhey et
al., ICCV 2013). Alpha: sum of absolute differences, per image in thousands of pixels, and mean squared error (Rhemann
et al., CVPR 2009). Others: mean absolute and root mean squared error, and the share of the variance that is explained.
Pixels of all images count the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..info import Target
from .metrics import json_number

_RATIO = 1.25
_ANGLES = (11.25, 22.5, 30.0)  # degrees
#: By kind: the figure that training selects checkpoints by. Lower is better for all of them.
HEADLINES = {"values": "rmse", "depth": "abs_rel", "normals": "mean_angle", "alpha": "sad"}
#: By figure: its name in tables, and its unit; "=": the unit of the values; "%": a share.
FIGURES = {
    "abs_rel": ("AbsRel", "%"),
    "rmse": ("RMSE", "="),
    "rmse_log": ("RMSE log", ""),
    "mae": ("MAE", "="),
    "delta1": ("delta < 1.25", "%"),
    "delta2": ("delta < 1.25^2", "%"),
    "delta3": ("delta < 1.25^3", "%"),
    "mean_angle": ("mean angle", "degrees"),
    "below_11": ("angle < 11.25", "%"),
    "below_22": ("angle < 22.5", "%"),
    "below_30": ("angle < 30", "%"),
    "sad": ("SAD", "thousand pixels per image"),
    "mse": ("MSE", ""),
    "r2": ("R2", ""),
}


def regression_sums(values: NDArray[np.floating], target: NDArray[np.floating], kind: str) -> NDArray[np.float64]:
    """The sums of one image from which :class:`RegressionScores` computes its figures.

    Args:
        values: prediction, ``(H, W, C)``.
        target: ``(H, W, C)``, NaN in pixels that are not valid.
        kind: kind of the target.

    Returns:
        Images with a valid pixel, valid pixels, per channel the sums of absolute and of squared errors, then those of
        the kind. They add up over images.

    Raises:
        DataError: the two have different shapes, or a prediction at a valid pixel is not finite.
    """
    if values.shape != target.shape:
        raise DataError(f"a prediction of {values.shape} does not fit a map of {target.shape} (H, W, channels)")
    valid = np.isfinite(target).all(2)
    found, true = values[valid].astype(np.float64), target[valid].astype(np.float64)
    if not np.isfinite(found).all():
        raise DataError("the model predicts NaN or infinite values: it diverged in training, or computes in float16")
    error = found - true
    sums = [len(found) > 0, len(found), *np.abs(error).sum(0), *np.square(error).sum(0), *_OF_KIND[kind](found, true)]
    return np.array(sums, np.float64)


def _depth_sums(found: NDArray[np.float64], true: NDArray[np.float64]) -> list[float]:
    """Sums of relative and squared logarithmic errors, numbers of pixels within three ratios, and at or below 0."""
    positive = found > 0
    ratio = np.full(found.shape, np.inf)
    np.divide(found, true, out=ratio, where=positive)
    ratio = np.maximum(ratio, 1 / ratio)
    logarithms = np.log(found[positive]) - np.log(true[positive])
    within = [float(np.count_nonzero(ratio < _RATIO**power)) for power in (1, 2, 3)]
    return [
        float((np.abs(found - true) / true).sum()),
        float((logarithms**2).sum()),
        *within,
        float(found.size - positive.sum()),
    ]


def _angle_sums(found: NDArray[np.float64], true: NDArray[np.float64]) -> list[float]:
    """Sum of the angles in degrees, and numbers of pixels below three angles; a vector of length 0 is off by 90."""
    # atan2 of cross and dot product is exact for small angles, where arccos is not.
    cross, dot = np.linalg.norm(np.cross(found, true), axis=1), (found * true).sum(1)
    angles = np.degrees(np.where(found.any(1), np.arctan2(cross, dot), np.pi / 2))
    return [float(angles.sum()), *(float(np.count_nonzero(angles < limit)) for limit in _ANGLES)]


def _value_sums(found: NDArray[np.float64], true: NDArray[np.float64]) -> list[float]:
    """Per channel the sums of the targets and of their squares."""
    return [*true.sum(0), *np.square(true).sum(0)]


def _no_sums(found: NDArray[np.float64], true: NDArray[np.float64]) -> list[float]:
    return []


_OF_KIND = {"values": _value_sums, "depth": _depth_sums, "normals": _angle_sums, "alpha": _no_sums}


@dataclass(frozen=True)
class RegressionScores:
    """Errors over valid pixels.

    Attributes:
        sums: of :func:`regression_sums`, over all images.
        target: what the values are.
        names: of the channels.
    """

    sums: NDArray[np.float64]
    target: Target
    names: tuple[str, ...]
    lower_is_better = True

    @staticmethod
    def size(kind: str, channels: int) -> int:
        """Number of sums."""
        return 2 + 2 * channels + {"depth": 6, "normals": 4, "values": 2 * channels}.get(kind, 0)

    @property
    def images(self) -> int:
        """Number of images with a valid pixel."""
        return int(self.sums[0])

    @property
    def pixels(self) -> int:
        """Number of valid pixels."""
        return int(self.sums[1])

    @property
    def headline(self) -> tuple[str, float]:
        """The metric that training selects checkpoints by; lower is better."""
        name = HEADLINES[self.target.kind]
        return name, self.figures[name]

    @property
    def figures(self) -> dict[str, float]:
        """Each figure of the kind by name, the headline first; NaN without valid pixels.

        ``rmse_log`` is NaN if a predicted depth is not above 0.
        """
        images, pixels, count = self.sums[0], self.sums[1], len(self.names)
        absolute, square, own = np.split(self.sums[2:], [count, 2 * count])
        with np.errstate(invalid="ignore", divide="ignore"):
            mse, mae = square.sum() / (pixels * count), absolute.sum() / (pixels * count)
            errors = {"rmse": np.sqrt(mse), "mae": mae}
            if self.target.kind == "alpha":
                found = {"sad": absolute.sum() / images / 1000, "mse": mse, "mae": mae}
            elif self.target.kind == "normals":
                found = dict(zip(("mean_angle", "below_11", "below_22", "below_30"), own / pixels, strict=True))
            elif self.target.kind == "depth":
                relative, logarithms, *within, negative = own
                rmse_log = math.nan if negative else np.sqrt(logarithms / pixels)
                found = {"abs_rel": relative / pixels, **errors, "rmse_log": rmse_log}
                found |= {f"delta{index}": number / pixels for index, number in enumerate(within, 1)}
            else:
                total, squares = np.split(own, 2)
                found = {**errors, "r2": 1 - square.sum() / (squares - total**2 / pixels).sum()}
        return {name: float(value) for name, value in found.items()}

    @property
    def similarity(self) -> float:
        """One figure of 1 for equal maps and less for others, for any kind: 1 - AbsRel, angle / 180 or MAE, or R2."""
        figures = self.figures
        if self.target.kind == "values":
            return figures["r2"]
        name, whole = {"depth": ("abs_rel", 1), "normals": ("mean_angle", 180)}.get(self.target.kind, ("mae", 1))
        return 1 - figures[name] / whole

    def channels(self) -> dict[str, dict[str, float | None]]:
        """Mean absolute and root mean squared error of each channel by its name."""
        absolute, square = np.split(self.sums[2 : 2 + 2 * len(self.names)], 2)
        with np.errstate(invalid="ignore", divide="ignore"):
            pairs = zip(absolute / self.sums[1], np.sqrt(square / self.sums[1]), strict=True)
        return {
            name: {"mae": json_number(mae), "rmse": json_number(rmse)}
            for name, (mae, rmse) in zip(self.names, pairs, strict=True)
        }

    def to_dict(self) -> dict[str, Any]:
        """All figures, ready for JSON."""
        found: dict[str, Any] = {name: json_number(value) for name, value in self.figures.items()}
        if len(self.names) > 1 and self.target.kind == "values":
            found["channels"] = self.channels()
        return found


def in_unit(name: str, value: float, unit: str = "") -> str:
    """A figure as text: "12.34%", "0.1234 m", "-" for NaN."""
    own = FIGURES[name][1]
    if math.isnan(value):
        return "-"
    return f"{value:.2%}" if own == "%" else f"{value:.4g} {unit if own == '=' else own}".rstrip()
