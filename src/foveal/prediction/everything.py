"""Automatic masks: ask a promptable model at a grid of points, keep what it is sure of (arXiv 2304.02643, appendix B).

Options and records are those of SAM's own generator. The decoder's cost is that of its prompts, so the fast mode asks
fewer: a coarse grid first, then the finer points where nothing was found.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, nearest
from ..images import regions
from ..images.regions import Runs
from ..images.sam_frame import FRAME, LOW_RES, at_image_size, frame_size
from .mask_results import EverythingResult, MaskResult, Record
from .prompting import Embedding

OutputMode = Literal["binary_mask", "uncompressed_rle", "coco_rle"]
Box = tuple[int, int, int, int]  # x1, y1, x2, y2
_AT_ONCE = 1 << 24  # values of masks at the image's size in memory
_MOST_POINTS = 1 << 20
_EDGE = 20  # pixels from its crop's edge within which a box touches that edge
#: The fast mode asks every fourth point of the grid in both directions, then every second, then all ...
_STRIDES = (4, 2, 1)
#: SAM's own thresholds, of predicted IoU and stability, and how much lower they are in the fast mode: an object seen
#: once, not from ten points, has one chance to pass.
_SAM, _FAST = (0.88, 0.95), (0.03, 0.03)
#: What a mask may fall short of them and still cover the points inside of it: it tells where another prompt would find
#: the same.
_COVERING = (0.08, 0.05)
_THRESHOLDS = ("pred_iou_thresh", "stability_score_thresh")
_PATCH = FRAME // LOW_RES  # pixels of the frame along a side of a mask's pixel


@dataclass(frozen=True, kw_only=True)
class EverythingOptions:
    """How to look for everything in an image; names and defaults are SAM's.

    Attributes:
        points_per_side: points of the grid along each side; ``None``: ``point_grids`` is given.
        points_per_batch: prompts asked together; changes memory, not masks.
        pred_iou_thresh: masks whose predicted IoU is not above it are dropped; ``None``: what the weights say, else
            SAM's 0.88; in the fast mode 0.03 less.
        stability_score_thresh: so are those whose stability score is below it; ``None``: what the weights say, else
            SAM's 0.95; in the fast mode 0.03 less.
        stability_score_offset: the score is the IoU of the masks cut at logits of +offset and of -offset.
        box_nms_thresh: of two masks whose boxes have a greater IoU, the one with the lower predicted IoU is dropped.
        crop_n_layers: times that the image is cut into crops as well, 2 x 2, then 4 x 4, ...
        crop_nms_thresh: as ``box_nms_thresh``, between crops; the smaller crop wins.
        crop_overlap_ratio: what the crops of 2 x 2 share, as a part of the image's short side; later ones share less.
        point_grids: points of one's own in place of a grid, for the image and each layer of crops: ``(N, 2)`` x and y
            of 0..1.
        crop_n_points_downscale_factor: each layer of crops has this many times fewer points along a side.
        min_mask_region_area: holes and parts of fewer pixels are mended.
        output_mode: of the records' ``segmentation``: ``(H, W)`` bool, or COCO's run-length encoding as lists of
            numbers or compressed (needs pycocotools).
        fast: ask a coarse grid first, finer points only outside of the masks that were found.

    Raises:
        ConfigError: a value that cannot be.
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
        if not isinstance(self.fast, bool):
            raise ConfigError(f"fast={self.fast!r}: give True or False")
        if self.output_mode not in get_args(OutputMode):
            raise ConfigError(
                f"unknown output_mode {self.output_mode!r}{nearest(str(self.output_mode), get_args(OutputMode))}"
            )
        if self.point_grids is not None:
            self._check_grids(self.point_grids)
        elif self.sides[-1] < 1:
            raise ConfigError(
                f"crop_n_points_downscale_factor={self.crop_n_points_downscale_factor}: {self.points_per_side} points "
                f"per side are none in layer {self.crop_n_layers}"
            )
        if self.points > _MOST_POINTS:
            raise ConfigError(f"crop_n_layers={self.crop_n_layers}: {self.points} points are too many")
        if self.output_mode == "coco_rle":
            regions.mask_tools()  # before work begins that needs them

    def _check_grids(self, grids: Sequence[NDArray[np.floating]]) -> None:
        if self.fast:
            raise ConfigError("fast=True has a grid of its own: leave out point_grids")
        if len(grids) != self.crop_n_layers + 1:
            raise ConfigError(f"{len(grids)} point_grids: give one for the image and for each of the crop_n_layers")
        for grid in map(np.asarray, grids):
            if grid.ndim != 2 or grid.shape[-1] != 2 or not grid.size or not ((grid >= 0) & (grid <= 1)).all():
                raise ConfigError(f"point_grids, one of {grid.shape}: give (N, 2) x and y of 0 to 1")

    def thresholds(self, own: Sequence[float]) -> tuple[float, float]:
        """``pred_iou_thresh`` and ``stability_score_thresh``, or what stands for ``None``.

        Args:
            own: those of the weights, ``ModelInfo.mask_thresholds``.
        """
        iou, stability = _less(own or _SAM, _FAST if self.fast else (0, 0))
        return (
            iou if self.pred_iou_thresh is None else self.pred_iou_thresh,
            stability if self.stability_score_thresh is None else self.stability_score_thresh,
        )

    @classmethod
    def of(cls, options: dict[str, Any]) -> EverythingOptions:
        """From keyword arguments.

        Raises:
            ConfigError: an unknown name, or a value that cannot be.
        """
        known = [field.name for field in fields(cls)]
        if unknown := next((name for name in options if name not in known), None):
            raise ConfigError(f"everything has no option {unknown!r}{nearest(unknown, known)}")
        return cls(**options)

    @property
    def sides(self) -> list[int]:
        """Points along a side of the grid, of the image and of each layer of crops; none with ``point_grids``."""
        if self.points_per_side is None:
            return []
        factor = self.crop_n_points_downscale_factor
        return [int(self.points_per_side // factor**layer) for layer in range(self.crop_n_layers + 1)]

    @property
    def points(self) -> int:
        """Points of the full grids of the image and all crops."""
        counts = [side**2 for side in self.sides] or [len(grid) for grid in self.point_grids or ()]
        return sum(4**layer * count for layer, count in enumerate(counts))


@dataclass(frozen=True)
class _Found:
    """A mask with all that its record says."""

    runs: Runs
    box: Box
    iou: float
    stability: float
    point: tuple[float, float]
    crop: Box


def find_everything(
    encode: Callable[[NDArray[np.uint8]], Embedding],
    image: NDArray[np.uint8],
    options: EverythingOptions,
    own_thresholds: Sequence[float] = (),
    progress: Callable[[int], object] | None = None,
) -> EverythingResult:
    """Find the masks of an image; see :meth:`foveal.Predictor.everything`.

    Memory holds the masks as runs, one batch of the decoder's answers, and a few masks at the image's size.
    """
    size = (image.shape[0], image.shape[1])
    found: list[_Found] = []
    prompts = 0
    crops = crop_boxes(size, options.crop_n_layers, options.crop_overlap_ratio)
    for crop, layer in crops:
        x1, y1, x2, y2 = crop
        embedding = encode(np.ascontiguousarray(image[y1:y2, x1:x2]))
        search = _Search(embedding, crop, size, options, own_thresholds, progress or (lambda points: None))
        if options.point_grids is None:
            search.run(options.sides[layer])
        else:
            search.ask_all(np.asarray(options.point_grids[layer], float) * embedding.size[::-1])
        prompts += search.prompts
        kept = suppressed(_boxes(search.found), np.array([f.iou for f in search.found]), options.box_nms_thresh)
        found += [search.found[i] for i in kept]
    if len(crops) > 1:
        areas = np.array([(f.crop[2] - f.crop[0]) * (f.crop[3] - f.crop[1]) for f in found], float)
        found = [found[i] for i in suppressed(_boxes(found), -areas, options.crop_nms_thresh)]
    if options.min_mask_region_area:
        found = _mended(found, size, options)
    found.sort(key=lambda f: -f.iou)
    return EverythingResult([_record(f, size, options.output_mode) for f in found], size, image, prompts)


class _Search:
    """The masks of one crop, as they are found.

    Attributes:
        found: masks that pass the thresholds.
        prompts: how many the decoder has answered.
        covered: where the fast mode needs no further prompt, ``(h, w)`` at the resolution of the network's masks.
    """

    def __init__(
        self,
        embedding: Embedding,
        crop: Box,
        size: tuple[int, int],
        options: EverythingOptions,
        own_thresholds: Sequence[float],
        progress: Callable[[int], object],
    ) -> None:
        self.embedding, self.crop, self.size, self.options, self.progress = embedding, crop, size, options, progress
        self.thresholds = options.thresholds(own_thresholds)
        self.covering = _less(own_thresholds or _SAM, _COVERING)
        self.found: list[_Found] = []
        self.prompts = 0
        height, width = frame_size(embedding.size)
        self.covered = np.zeros((-(-height // _PATCH), -(-width // _PATCH)), bool)
        self.to_patches = np.array([width, height]) / embedding.size[::-1] / _PATCH

    def run(self, side: int) -> None:
        """Ask at a grid of ``side`` x ``side`` points, in the fast mode at some of them."""
        points = point_grid(side).reshape(side, side, 2) * self.embedding.size[::-1]
        waiting = np.ones((side, side), bool)
        for stride in _STRIDES if self.options.fast else (1,):
            due = np.zeros_like(waiting)
            due[stride // 2 :: stride, stride // 2 :: stride] = True
            due &= waiting
            waiting &= ~due
            stage = points[due]
            if self.options.fast:
                x, y = (stage * self.to_patches).astype(int).T
                covered = self.covered[y, x]
                self.progress(int(covered.sum()))
                stage = stage[~covered]
            self.ask_all(stage)

    def ask_all(self, points: NDArray[np.float64]) -> None:
        """Ask at points ``(P, 2)``, batch by batch."""
        for batch in _portions(points, self.options.points_per_batch):
            self.ask(batch)
            self.progress(len(batch))

    def ask(self, points: NDArray[np.float64]) -> None:
        """Ask at points ``(P, 2)``, x and y in the crop, each alone; keep the good masks."""
        options, (height, width) = self.options, self.embedding.size
        least_iou, least_stability = self.thresholds
        least_iou = least_iou or -math.inf  # 0 keeps all, as SAM has it
        wanted = min(least_iou, self.covering[0]) if options.fast else least_iou
        answer = self.embedding.prompt(points[:, None], np.ones((len(points), 1)), least_iou=wanted)
        self.prompts += len(points)
        if options.fast:
            self.cover(answer)
        low_res, iou = answer.low_res.reshape(-1, *answer.low_res.shape[2:]), answer.iou.ravel()
        sure = np.flatnonzero(iou > least_iou)
        for part in _portions(sure, max(1, _AT_ONCE // (height * width))):
            logits = at_image_size(low_res[part], (height, width))
            stability = stability_scores(logits, options.stability_score_offset)
            masks = logits > 0
            good = (stability >= least_stability) & masks.any((1, 2))
            part, stability, masks = part[good], stability[good], masks[good]
            for index, score, mask, box in zip(part, stability, masks, regions.boxes_of(masks), strict=True):
                self.keep(mask, box, float(iou[index]), float(score), points[index // answer.iou.shape[1]])

    def cover(self, answer: MaskResult) -> None:
        """Mark the smallest good mask of each prompt: a larger one may hold objects that are still to be found."""
        height, width = self.covered.shape
        inside = answer.low_res[..., :height, :width]
        flat = inside.reshape(-1, height, width)
        stability = stability_scores(flat, self.options.stability_score_offset).reshape(answer.iou.shape)
        areas = np.count_nonzero(inside > 0, axis=(2, 3)).astype(float)
        sure, stable = self.covering
        areas[(answer.iou <= sure) | (stability < stable) | (areas == 0)] = np.inf
        for index in np.flatnonzero(np.isfinite(areas).any(1)):
            self.covered |= inside[index, areas[index].argmin()] > 0

    def keep(
        self, mask: NDArray[np.bool_], box: NDArray[np.int64], iou: float, stability: float, point: NDArray[np.float64]
    ) -> None:
        """Take a mask in, unless the crop cuts it."""
        left, top, right, bottom = self.crop
        x1, y1, x2, y2 = (int(value) for value in box)
        placed: Box = (x1 + left, y1 + top, x2 + left, y2 + top)
        if touches_edge(placed, self.crop, self.size):
            return
        if mask.shape != self.size:
            whole = np.zeros(self.size, bool)
            whole[top:bottom, left:right] = mask
            mask = whole
        at = (float(point[0]) + left, float(point[1]) + top)
        self.found.append(_Found(regions.runs_of(mask), placed, iou, stability, at, self.crop))


def point_grid(side: int) -> NDArray[np.float64]:
    """Centres of ``side`` x ``side`` equal cells of a square of 1, row by row: ``(side * side, 2)``, x and y."""
    at = (np.arange(side) + 0.5) / side
    return np.stack(np.meshgrid(at, at), -1).reshape(-1, 2)


def crop_boxes(size: tuple[int, int], layers: int, overlap_ratio: float) -> list[tuple[Box, int]]:
    """The image and its crops with their layers; a crop overlaps the next by ``overlap_ratio`` of the short side."""
    height, width = size
    found: list[tuple[Box, int]] = [((0, 0, width, height), 0)]
    for layer in range(1, layers + 1):
        across = 2**layer
        overlap = int(overlap_ratio * min(size) * (2 / across))
        wide, high = (math.ceil((overlap * (across - 1) + side) / across) for side in (width, height))
        for x in (int((wide - overlap) * i) for i in range(across)):
            for y in (int((high - overlap) * i) for i in range(across)):
                found.append(((x, y, min(x + wide, width), min(y + high, height)), layer))
    return [(box, layer) for box, layer in found if box[0] < box[2] and box[1] < box[3]]


def stability_scores(logits: NDArray[np.floating], offset: float) -> NDArray[np.float64]:
    """IoU of masks ``(N, H, W)`` cut at +offset and at -offset, ``(N,)``; 0 where nothing is above either."""
    inner = np.count_nonzero(logits > offset, axis=(1, 2))
    outer = np.count_nonzero(logits > -offset, axis=(1, 2))
    return inner / np.maximum(outer, 1)


def touches_edge(box: Box, crop: Box, size: tuple[int, int]) -> bool:
    """Whether a box comes within 20 pixels of an edge of its crop that is not one of the image."""
    image = (0, 0, size[1], size[0])
    return any(
        abs(side - cut) <= _EDGE < abs(side - border) for side, cut, border in zip(box, crop, image, strict=True)
    )


def suppressed(boxes: NDArray[np.floating], scores: NDArray[np.floating], iou: float) -> NDArray[np.int64]:
    """Non-maximum suppression.

    Args:
        boxes: ``(N, 4)`` x1, y1, x2, y2.
        scores: ``(N,)``; of equal ones the first wins.
        iou: boxes with a greater IoU than this are one.

    Returns:
        Indices of the boxes that stay, highest score first.
    """
    order, kept = np.argsort(-scores, kind="stable"), []
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        corners = np.maximum(boxes[best, :2], boxes[order, :2]), np.minimum(boxes[best, 2:], boxes[order, 2:])
        shared = (corners[1] - corners[0]).clip(0).prod(1)
        order = order[shared <= iou * (areas[best] + areas[order] - shared)]
    return np.array(kept, np.int64)


def _less(thresholds: Sequence[float], by: Sequence[float]) -> tuple[float, float]:
    iou, stability = (round(max(0.0, a - b), 6) for a, b in zip(thresholds, by, strict=True))
    return iou, stability


def _boxes(found: list[_Found]) -> NDArray[np.float64]:
    return np.array([f.box for f in found], float).reshape(-1, 4)


def _portions(array: NDArray[Any], length: int) -> Iterator[NDArray[Any]]:
    for start in range(0, len(array), length):
        yield array[start : start + length]


def _mended(found: list[_Found], size: tuple[int, int], options: EverythingOptions) -> list[_Found]:
    """Without small holes and parts; of masks that have thereby become one, those that needed none of it stay."""
    out, changes = [], []
    for old in found:
        mask, changed = regions.without_small_parts(regions.mask_of(old.runs, size), options.min_mask_region_area)
        if changed:
            x1, y1, x2, y2 = (int(value) for value in regions.boxes_of(mask[None])[0])
            old = _Found(regions.runs_of(mask), (x1, y1, x2, y2), old.iou, old.stability, old.point, old.crop)
        out.append(old)
        changes.append(changed)
    iou = max(options.box_nms_thresh, options.crop_nms_thresh)
    return [out[i] for i in suppressed(_boxes(out), -np.array(changes, float), iou)]


def _record(found: _Found, size: tuple[int, int], mode: OutputMode) -> Record:
    encode = {
        "binary_mask": regions.mask_of,
        "uncompressed_rle": regions.uncompressed_rle,
        "coco_rle": regions.coco_rle,
    }[mode]
    x1, y1, x2, y2 = found.box
    left, top, right, bottom = found.crop
    return {
        "segmentation": encode(found.runs, size),
        "area": int(found.runs[1::2].sum()),
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "predicted_iou": found.iou,
        "point_coords": [list(found.point)],
        "stability_score": found.stability,
        "crop_box": [left, top, right - left, bottom - top],
    }
