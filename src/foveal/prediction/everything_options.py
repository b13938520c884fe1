"""Options for finding all objects in an image, with SAM's names and defaults."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, nearest
from ..images import regions

OutputMode = Literal["binary_mask", "uncompressed_rle", "coco_rle"]

_MOST_POINTS = 1 << 20
#: SAM's thresholds of predicted IoU and stability score, and how much lower they are in the fast mode: there, an object
#: is prompted once instead of about ten times, so only one mask has the chance to pass.
_SAM, _FAST = (0.88, 0.95), (0.03, 0.03)
#: How far a mask may fall below the thresholds and still cover the points inside it: prompts there would return the
#: same mask.
_COVERING = (0.08, 0.05)
_THRESHOLDS = ("pred_iou_thresh", "stability_score_thresh")


@dataclass(frozen=True, kw_only=True)
class EverythingOptions:
    """How to find all objects in an image. Names and defaults are those of SAM's generator; ``fast`` is Foveal's.

    Attributes:
        points_per_side: points along each side of the grid of prompts; ``None``: use ``point_grids``.
        points_per_batch: prompts in one batch; changes memory, not masks.
        pred_iou_thresh: only masks with a higher predicted IoU are kept, 0 to 1; ``None``: the weights' own threshold,
            else SAM's 0.88; in the fast mode 0.03 lower.
        stability_score_thresh: masks with a lower stability score are dropped, 0 to 1; ``None``: the weights' own
            threshold, else SAM's 0.95; in the fast mode 0.03 lower.
        stability_score_offset: the stability score is the IoU of the masks that the thresholds +offset and -offset give
            on the logits.
        box_nms_thresh: of two masks whose boxes have a higher IoU, the one with the lower predicted IoU is dropped.
        crop_n_layers: number of times that the image is also cut into crops: 2 x 2, then 4 x 4, ...
        crop_nms_thresh: as ``box_nms_thresh``, between masks of different crops; the smaller crop wins.
        crop_overlap_ratio: overlap of the 2 x 2 crops as a fraction of the image's short side; half as much in each
            further layer.
        point_grids: points to use in place of the grid, one array for the image and one for each layer of crops:
            ``(N, 2)``, x and y from 0 to 1.
        crop_n_points_downscale_factor: each layer of crops has this many times fewer points along a side.
        min_mask_region_area: holes and separate parts with fewer pixels are removed.
        output_mode: form of the records' ``segmentation``: ``(H, W)`` bool, or COCO's run-length encoding as lists of
            numbers or compressed (needs pycocotools).
        fast: use a coarse grid first, then finer points only outside the masks found so far.

    Raises:
        ConfigError: a value out of range.
        DependencyError: ``coco_rle`` without pycocotools.
    """

    points_per_side: int | None = 32
    points_per_batch: int = 64
    pred_iou_thresh: float | None = None
    stability_score_thresh: float | None = None
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    point_grids: Sequence[NDArray[np.floating]] | None = None
    min_mask_region_area: int = 0
    output_mode: OutputMode = "binary_mask"
    fast: bool = False

    def __post_init__(self) -> None:
        if (self.points_per_side is None) == (self.point_grids is None):
            raise ConfigError("give points_per_side or point_grids, and None for the other")
        self._check_numbers()
        if not isinstance(self.fast, bool):
            raise ConfigError(f"fast={self.fast!r}: give True or False")
        if self.output_mode not in get_args(OutputMode):
            raise ConfigError(
                f"unknown output_mode {self.output_mode!r}{nearest(str(self.output_mode), get_args(OutputMode))}"
            )
        self._check_points()
        if self.output_mode == "coco_rle":
            regions.mask_tools()  # raises before any work is done

    def _check_numbers(self) -> None:
        for name, low, high in (
            *((name, 1, 1024) for name in ("points_per_side",) if self.point_grids is None),
            ("points_per_batch", 1, 65536),
            ("crop_n_layers", 0, 4),
            ("crop_n_points_downscale_factor", 1, 1024),
            ("min_mask_region_area", 0, 2**31),
        ):
            value = getattr(self, name)
            whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
            if not whole or not low <= int(value) <= high:
                raise ConfigError(f"{name}={value!r}: give a whole number of {low} to {high}")
        for name, high in (
            *((name, 1) for name in _THRESHOLDS if getattr(self, name) is not None),
            ("stability_score_offset", math.inf),
            ("box_nms_thresh", 1),
            ("crop_nms_thresh", 1),
            ("crop_overlap_ratio", 1),
        ):
            value = getattr(self, name)
            real = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if not real or not 0 <= float(value) <= high:
                limit = "0 or more" if high == math.inf else f"0 to {high}"
                raise ConfigError(f"{name}={value!r}: give a number of {limit}")

    def _check_points(self) -> None:
        if self.point_grids is not None:
            self._check_grids(self.point_grids)
        elif self.sides[-1] < 1:
            raise ConfigError(
                f"crop_n_points_downscale_factor={self.crop_n_points_downscale_factor}: {self.points_per_side} points "
                f"per side are none in layer {self.crop_n_layers}; give a smaller factor or more points"
            )
        if self.points > _MOST_POINTS:
            raise ConfigError(
                f"crop_n_layers={self.crop_n_layers}: {self.points} points are too many, at most {_MOST_POINTS}; "
                "give fewer layers or points_per_side"
            )

    def _check_grids(self, grids: Sequence[NDArray[np.floating]]) -> None:
        if self.fast:
            raise ConfigError("fast=True has a grid of its own: leave out point_grids")
        if len(grids) != self.crop_n_layers + 1:
            raise ConfigError(f"{len(grids)} point_grids: give one for the image and for each of the crop_n_layers")
        for grid in map(np.asarray, grids):
            if grid.ndim != 2 or grid.shape[-1] != 2 or not grid.size or not ((grid >= 0) & (grid <= 1)).all():
                raise ConfigError(f"point_grids, one of {grid.shape}: give (N, 2) x and y of 0 to 1")

    @classmethod
    def of(cls, options: dict[str, Any]) -> EverythingOptions:
        """Options from keyword arguments.

        Raises:
            ConfigError: an unknown name, or a value out of range.
        """
        known = [field.name for field in fields(cls)]
        if unknown := next((name for name in options if name not in known), None):
            raise ConfigError(f"everything has no option {unknown!r}{nearest(unknown, known)}")
        return cls(**options)

    def thresholds(self, own: Sequence[float]) -> tuple[float, float]:
        """``pred_iou_thresh`` and ``stability_score_thresh``, with their defaults in place of ``None``.

        Args:
            own: thresholds of the weights, ``ModelInfo.mask_thresholds``; empty: SAM's.
        """
        iou, stability = _subtract(own or _SAM, _FAST if self.fast else (0, 0))
        return (
            iou if self.pred_iou_thresh is None else self.pred_iou_thresh,
            stability if self.stability_score_thresh is None else self.stability_score_thresh,
        )

    def above_own(self, own: Sequence[float]) -> str:
        """The thresholds that are higher than the weights' own, in words; empty if none is.

        Args:
            own: thresholds of the weights, ``ModelInfo.mask_thresholds``; empty: SAM's.
        """
        default = replace(self, pred_iou_thresh=None, stability_score_thresh=None).thresholds(own)
        return ", ".join(
            f"{name}={given:g} (its own: {usual:g}, the default)"
            for name, given, usual in zip(_THRESHOLDS, self.thresholds(own), default, strict=True)
            if given > usual
        )

    @staticmethod
    def covering_thresholds(own: Sequence[float]) -> tuple[float, float]:
        """Predicted IoU and stability score from which on, in the fast mode, a mask covers the points inside it.

        Args:
            own: thresholds of the weights, ``ModelInfo.mask_thresholds``; empty: SAM's.
        """
        return _subtract(own or _SAM, _COVERING)

    @property
    def sides(self) -> list[int]:
        """Points along a side of the grid: of the image, then of each layer of crops; empty with ``point_grids``."""
        if self.points_per_side is None:
            return []
        factor = self.crop_n_points_downscale_factor
        return [int(self.points_per_side // factor**layer) for layer in range(self.crop_n_layers + 1)]

    @property
    def points(self) -> int:
        """Total number of points of the full grids of the image and all crops."""
        counts = [side**2 for side in self.sides] or [len(grid) for grid in self.point_grids or ()]
        return sum(4**layer * count for layer, count in enumerate(counts))


def _subtract(thresholds: Sequence[float], reductions: Sequence[float]) -> tuple[float, float]:
    iou, stability = (round(max(0.0, a - b), 6) for a, b in zip(thresholds, reductions, strict=True))
    return iou, stability
