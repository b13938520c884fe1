"""Automatic masks: prompt a model with a grid of points and keep the masks with a high predicted quality.

The method and its options are those of Segment Anything (arXiv 2304.02643, appendix B). Cost grows with the number of
prompts, so the fast mode uses fewer: a coarse grid first, then finer points where no mask was found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..images import regions
from ..images.regions import Runs
from ..images.sam_frame import FRAME, LOW_RES, at_image_size, frame_size
from .everything_options import EverythingOptions as EverythingOptions
from .everything_options import OutputMode
from .mask_results import EverythingResult, MaskResult, Record
from .prompting import Embedding

Box = tuple[int, int, int, int]  # x1, y1, x2, y2
_AT_ONCE = 1 << 24  # largest number of mask values at the image's size in memory
_EDGE = 20  # a box within this many pixels of its crop's edge is cut by it
#: The fast mode uses every fourth point of the grid in both directions, then every second, then all.
_STRIDES = (4, 2, 1)
_PATCH = FRAME // LOW_RES  # pixels of the frame along a side of one pixel of the network's masks


@dataclass(frozen=True)
class _Mask:
    """A mask with everything that its record holds; boxes and points are in pixels of the image."""

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

    Memory holds the masks as runs, one batch of the decoder's output, and a few masks at the image's size.
    """
    size = (image.shape[0], image.shape[1])
    masks: list[_Mask] = []
    prompts = 0
    crops = crop_boxes(size, options.crop_n_layers, options.crop_overlap_ratio)
    for crop, layer in crops:
        x1, y1, x2, y2 = crop
        embedding = encode(np.ascontiguousarray(image[y1:y2, x1:x2]))
        search = _Search(embedding, crop, size, options, own_thresholds, progress or (lambda points: None))
        if options.point_grids is None:
            search.run(options.sides[layer])
        else:
            search.prompt_all(np.asarray(options.point_grids[layer], float) * embedding.size[::-1])
        prompts += search.prompts
        remaining = suppress(_boxes(search.masks), np.array([m.iou for m in search.masks]), options.box_nms_thresh)
        masks += [search.masks[i] for i in remaining]
    if len(crops) > 1:
        areas = np.array([(m.crop[2] - m.crop[0]) * (m.crop[3] - m.crop[1]) for m in masks], float)
        masks = [masks[i] for i in suppress(_boxes(masks), -areas, options.crop_nms_thresh)]
    if options.min_mask_region_area:
        masks = _remove_small_regions(masks, size, options)
    masks.sort(key=lambda m: -m.iou)
    return EverythingResult([_record(m, size, options.output_mode) for m in masks], size, image, prompts)


class _Search:
    """Collects the masks of one crop.

    Attributes:
        masks: masks that pass the thresholds.
        prompts: number of prompts so far.
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
        self.covering = options.covering_thresholds(own_thresholds)
        self.masks: list[_Mask] = []
        self.prompts = 0
        height, width = frame_size(embedding.size)
        self.covered = np.zeros((-(-height // _PATCH), -(-width // _PATCH)), bool)
        self.to_patches = np.array([width, height]) / embedding.size[::-1] / _PATCH

    def run(self, side: int) -> None:
        """Prompt with a grid of ``side`` x ``side`` points; in the fast mode, with those that no mask covers."""
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
            self.prompt_all(stage)

    def prompt_all(self, points: NDArray[np.float64]) -> None:
        """Prompt with points ``(P, 2)``, batch by batch."""
        for batch in _portions(points, self.options.points_per_batch):
            self.prompt(batch)
            self.progress(len(batch))

    def prompt(self, points: NDArray[np.float64]) -> None:
        """Prompt with each of the points ``(P, 2)``, x and y in the crop, and keep the masks that pass."""
        options, (height, width) = self.options, self.embedding.size
        least_iou, least_stability = self.thresholds
        least_iou = least_iou or -math.inf  # 0 keeps every mask, as in SAM
        lowest = min(least_iou, self.covering[0]) if options.fast else least_iou
        answer = self.embedding.prompt(points[:, None], np.ones((len(points), 1)), least_iou=lowest)
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
        """Mark the smallest good mask of each prompt as covered: a larger one may hold objects not yet found."""
        height, width = self.covered.shape
        inside = answer.low_res[..., :height, :width]
        flat = inside.reshape(-1, height, width)
        stability = stability_scores(flat, self.options.stability_score_offset).reshape(answer.iou.shape)
        areas = np.count_nonzero(inside > 0, axis=(2, 3)).astype(float)
        least_iou, least_stability = self.covering
        areas[(answer.iou <= least_iou) | (stability < least_stability) | (areas == 0)] = np.inf
        for index in np.flatnonzero(np.isfinite(areas).any(1)):
            self.covered |= inside[index, areas[index].argmin()] > 0

    def keep(
        self, mask: NDArray[np.bool_], box: NDArray[np.int64], iou: float, stability: float, point: NDArray[np.float64]
    ) -> None:
        """Add a mask, unless the edge of the crop cuts it."""
        left, top, right, bottom = self.crop
        x1, y1, x2, y2 = (int(value) for value in box)
        in_image: Box = (x1 + left, y1 + top, x2 + left, y2 + top)
        if touches_edge(in_image, self.crop, self.size):
            return
        if mask.shape != self.size:
            full = np.zeros(self.size, bool)
            full[top:bottom, left:right] = mask
            mask = full
        prompt = (float(point[0]) + left, float(point[1]) + top)
        self.masks.append(_Mask(regions.runs_of(mask), in_image, iou, stability, prompt, self.crop))


def point_grid(side: int) -> NDArray[np.float64]:
    """Centres of ``side`` x ``side`` equal cells of a unit square, row by row: ``(side * side, 2)``, x and y."""
    centres = (np.arange(side) + 0.5) / side
    return np.stack(np.meshgrid(centres, centres), -1).reshape(-1, 2)


def crop_boxes(size: tuple[int, int], layers: int, overlap_ratio: float) -> list[tuple[Box, int]]:
    """Boxes of the image and its crops, with their layers.

    Args:
        size: (H, W) of the image.
        layers: layer n has 2^n x 2^n crops; the image is layer 0.
        overlap_ratio: overlap of neighbouring crops of layer 1 as a fraction of the image's short side.
    """
    height, width = size
    boxes: list[tuple[Box, int]] = [((0, 0, width, height), 0)]
    for layer in range(1, layers + 1):
        across = 2**layer
        overlap = int(overlap_ratio * min(size) * (2 / across))
        wide, high = (math.ceil((overlap * (across - 1) + side) / across) for side in (width, height))
        for x in (int((wide - overlap) * i) for i in range(across)):
            for y in (int((high - overlap) * i) for i in range(across)):
                boxes.append(((x, y, min(x + wide, width), min(y + high, height)), layer))
    return [(box, layer) for box, layer in boxes if box[0] < box[2] and box[1] < box[3]]


def stability_scores(logits: NDArray[np.floating], offset: float) -> NDArray[np.float64]:
    """Stability scores ``(N,)`` of mask logits ``(N, H, W)``: IoU of the masks above +offset and above -offset.

    0 where no logit is above either.
    """
    inner = np.count_nonzero(logits > offset, axis=(1, 2))
    outer = np.count_nonzero(logits > -offset, axis=(1, 2))
    return inner / np.maximum(outer, 1)


def touches_edge(box: Box, crop: Box, size: tuple[int, int]) -> bool:
    """Whether a box comes within 20 pixels of an edge of its crop that is not an edge of the image, (H, W) ``size``."""
    image = (0, 0, size[1], size[0])
    return any(
        abs(side - cut) <= _EDGE < abs(side - border) for side, cut, border in zip(box, crop, image, strict=True)
    )


def suppress(boxes: NDArray[np.floating], scores: NDArray[np.floating], iou: float) -> NDArray[np.int64]:
    """Non-maximum suppression.

    Args:
        boxes: ``(N, 4)`` x1, y1, x2, y2.
        scores: ``(N,)``; of equal scores the first wins.
        iou: of two boxes with a higher IoU, the one with the lower score is dropped.

    Returns:
        Indices of the boxes that remain, highest score first.
    """
    order, remaining = np.argsort(-scores, kind="stable"), []
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    while len(order):
        best, order = order[0], order[1:]
        remaining.append(best)
        corners = np.maximum(boxes[best, :2], boxes[order, :2]), np.minimum(boxes[best, 2:], boxes[order, 2:])
        shared = (corners[1] - corners[0]).clip(0).prod(1)
        order = order[shared <= iou * (areas[best] + areas[order] - shared)]
    return np.array(remaining, np.int64)


def _boxes(masks: list[_Mask]) -> NDArray[np.float64]:
    return np.array([mask.box for mask in masks], float).reshape(-1, 4)


def _portions(array: NDArray[Any], length: int) -> Iterator[NDArray[Any]]:
    for start in range(0, len(array), length):
        yield array[start : start + length]


def _remove_small_regions(masks: list[_Mask], size: tuple[int, int], options: EverythingOptions) -> list[_Mask]:
    """Remove small holes and parts. Of masks that become duplicates by this, the unchanged ones are preferred."""
    cleaned, changes = [], []
    for old in masks:
        mask, changed = regions.without_small_parts(regions.mask_of(old.runs, size), options.min_mask_region_area)
        if changed:
            x1, y1, x2, y2 = (int(value) for value in regions.boxes_of(mask[None])[0])
            old = _Mask(regions.runs_of(mask), (x1, y1, x2, y2), old.iou, old.stability, old.point, old.crop)
        cleaned.append(old)
        changes.append(changed)
    iou = max(options.box_nms_thresh, options.crop_nms_thresh)
    return [cleaned[i] for i in suppress(_boxes(cleaned), -np.array(changes, float), iou)]


def _record(mask: _Mask, size: tuple[int, int], mode: OutputMode) -> Record:
    encode = {
        "binary_mask": regions.mask_of,
        "uncompressed_rle": regions.uncompressed_rle,
        "coco_rle": regions.coco_rle,
    }[mode]
    x1, y1, x2, y2 = mask.box
    left, top, right, bottom = mask.crop
    return {
        "segmentation": encode(mask.runs, size),
        "area": int(mask.runs[1::2].sum()),
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "predicted_iou": mask.iou,
        "point_coords": [list(mask.point)],
        "stability_score": mask.stability,
        "crop_box": [left, top, right - left, bottom - top],
    }
