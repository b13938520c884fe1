"""COCO's scores of masks, computed by pycocotools: average precision, and the recall of masks without classes.

Source: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; pycocotools.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.instances import Instance
from ..errors import DataError, DependencyError
from ..images.regions import mask_tools

MAX_DETECTIONS = 100  #: number of masks per image that average precision counts, the best by score (COCO's setting)
_SIZES = ("all", "small", "medium", "large")


def has_coco_tools() -> bool:
    """Whether pycocotools is installed."""
    try:
        mask_tools()
    except DependencyError:
        return False
    return True


@dataclass
class CocoScorer:
    """Collects the objects and masks of images, as run lengths, and scores them. Crowds are neither hits nor misses.

    Attributes:
        sizes: (H, W) of each image.
        truth: annotations of the objects in COCO's format.
        detections: predicted masks in COCO's format.

    Raises:
        DependencyError: pycocotools is not installed.
    """

    sizes: list[tuple[int, int]] = field(default_factory=list, repr=False)
    truth: list[dict[str, Any]] = field(default_factory=list, repr=False)
    detections: list[dict[str, Any]] = field(default_factory=list, repr=False)

    def add(self, instances: Sequence[Instance], records: Iterable[Mapping[str, Any]]) -> None:
        """Add one image.

        Args:
            instances: its objects.
            records: its predicted masks, each with "segmentation" (``(H, W)`` bool, or COCO's run lengths),
                "predicted_iou" and, for average precision, "category_id". The records of the automatic mask generator
                have this format.

        Raises:
            DataError: masks and objects of one image differ in size.
        """
        image = len(self.sizes) + 1
        masks = [(as_runs(record["segmentation"]), record) for record in records]
        sizes = {tuple(runs["size"]) for runs, _ in masks} | {instance.mask.shape for instance in instances}
        if len(sizes) > 1:
            raise DataError(f"masks and objects of one image have the sizes {sorted(sizes)} (H, W): give one size")
        self.sizes.append(next(iter(sizes), (1, 1)))
        for instance in instances:
            self.truth.append(
                {
                    "id": len(self.truth) + 1,  # pycocotools takes 0 for "no match"
                    "image_id": image,
                    "category_id": instance.category,
                    "segmentation": as_runs(instance.mask),
                    "bbox": _xywh(instance),
                    "area": instance.area,
                    "iscrowd": int(instance.iscrowd),
                }
            )
        for runs, record in masks:
            self.detections.append(
                {
                    "image_id": image,
                    "category_id": int(record.get("category_id", 0)),
                    "segmentation": runs,
                    "score": float(record["predicted_iou"]),
                }
            )

    def average_precision(self) -> dict[str, float]:
        """AP over IoU 0.50:0.95, at 0.50 and at 0.75, and by object size; NaN without objects of a size."""
        scores = self._match(MAX_DETECTIONS, by_class=True)
        precision = scores.eval["precision"]  # (IoU, recall, class, size, detections)
        thresholds = [int(np.argmin(abs(scores.params.iouThrs - t))) for t in (0.5, 0.75)]
        named = {"AP": precision[:, :, :, 0], "AP50": precision[thresholds[0], :, :, 0]}
        named["AP75"] = precision[thresholds[1], :, :, 0]
        named |= {f"AP {size}": precision[:, :, :, i] for i, size in enumerate(_SIZES) if i}
        return {name: _mean(values) for name, values in named.items()}

    def average_recall(self, max_detections: int = 1000) -> dict[str, float]:
        """AR over IoU 0.50:0.95 of the best ``max_detections`` masks of each image, regardless of class."""
        recall = self._match(max_detections, by_class=False).eval["recall"]  # (IoU, class, size, detections)
        return {"AR" if size == "all" else f"AR {size}": _mean(recall[:, :, i]) for i, size in enumerate(_SIZES)}

    def _match(self, max_detections: int, by_class: bool) -> Any:
        """Match masks with objects; the result is a ``COCOeval`` with its ``eval`` filled in."""
        mask_tools()
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        categories = sorted({entry["category_id"] for entry in (*self.truth, *self.detections)})
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            sides = []
            for entries in (self.truth, self._detections_with_ids()):
                tool: Any = COCO()
                tool.dataset = {
                    "images": [{"id": i, "height": h, "width": w} for i, (h, w) in enumerate(self.sizes, start=1)],
                    "categories": [{"id": i, "name": str(i)} for i in categories],
                    "annotations": [dict(entry) for entry in entries],  # pycocotools changes them
                }
                tool.createIndex()
                sides.append(tool)
            truth, detections = sides
            scores = COCOeval(truth, detections, "segm")
            scores.params.maxDets = [max_detections]
            scores.params.useCats = int(by_class)
            scores.evaluate()
            scores.accumulate()
        return scores

    def _detections_with_ids(self) -> list[dict[str, Any]]:
        tools = mask_tools()
        return [
            {**entry, "id": i, "area": float(tools.area(entry["segmentation"])), "iscrowd": 0}
            for i, entry in enumerate(self.detections, start=1)
        ]


def average_recall(
    images: Iterable[tuple[Sequence[Instance], Iterable[Mapping[str, Any]]]], max_detections: int = 1000
) -> dict[str, float]:
    """Average recall of masks without classes, for example of the automatic mask generator, by COCO's definition.

    Args:
        images: for each image its objects (:class:`foveal.data.instances.InstanceData` reads them) and its predicted
            masks, each with "segmentation" (``(H, W)`` bool, or COCO's run lengths) and "predicted_iou".
        max_detections: number of masks per image that count, the best by predicted IoU.

    Returns:
        "AR" over IoU 0.50:0.95, and "AR small", "AR medium" and "AR large"; NaN without objects of a size.

    Raises:
        DataError: masks and objects of one image differ in size.
        DependencyError: pycocotools is not installed.
    """
    scorer = CocoScorer()
    for instances, records in images:
        scorer.add(instances, records)
    return scorer.average_recall(max_detections)


def _mean(values: NDArray[np.float64]) -> float:
    """Mean without the -1 that pycocotools writes for missing values; NaN if all are missing."""
    known = values[values > -1]
    return float(known.mean()) if known.size else float("nan")


def _xywh(instance: Instance) -> list[float]:
    x1, y1, x2, y2 = instance.box
    return [x1, y1, x2 - x1, y2 - y1]


def as_runs(segmentation: Any) -> dict[str, Any]:
    """COCO's compressed run lengths of a mask ``(H, W)``, or of run lengths, compressed or not."""
    tools = mask_tools()
    if isinstance(segmentation, Mapping):
        plain = isinstance(segmentation["counts"], list)
        return tools.frPyObjects(segmentation, *segmentation["size"]) if plain else dict(segmentation)
    return tools.encode(np.asfortranarray(segmentation, np.uint8))
