"""COCO's average precision of the masks that a promptable model draws in a detector's boxes.

This is how the papers of SAM, MobileSAM and EfficientViT-SAM score instance segmentation (arXiv 2304.02643, section
7.4; 2306.14289; 2402.05008, table 4): each box is one prompt, the mask with the highest predicted IoU of three is
taken, and the masks are ranked by the scores of the boxes.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..data.instances import InstanceData
from ..data.label_files import Id, as_id, read_json
from ..errors import DataError
from ..files import atomic_write
from ..prediction.predictor import Predictor
from .coco import CocoScorer, as_runs
from .metrics import json_number
from .report import REPORT, Part, Table, skipped_rows, write_json

_MASKS = "masks.json"
_AT_ONCE = 16  # prompts whose masks are in memory at the image's size
_NAMED = 5  # ids that a message names


class Detection(NamedTuple):
    """A detector's box: its class by COCO's id, x1, y1, x2, y2 in pixels, and its score."""

    category: Id
    box: tuple[float, float, float, float]
    score: float


@dataclass(frozen=True)
class DetectionEvaluation:
    """Report of the masks in a detector's boxes.

    Attributes:
        images: number of images that were scored, those without boxes or objects included.
        split: the split that was scored.
        objects: number of objects in them.
        boxes: number of boxes that became masks.
        encode_seconds: median time from an image to its embedding.
        average_precision: COCO's scores of the masks, ranked by the scores of the boxes.
        masks: the masks in COCO's result format.
        dropped: why boxes were left out, each with their number.
        skipped: images that could not be scored, each with the reason.
    """

    images: int
    split: str
    objects: int
    boxes: int
    encode_seconds: float
    average_precision: dict[str, float]
    masks: list[dict[str, Any]] = field(default_factory=list, repr=False)
    dropped: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    files: ClassVar[tuple[str, ...]] = (REPORT, _MASKS)

    def to_dict(self) -> dict[str, Any]:
        """Scores of the whole data set, ready for JSON."""
        return {
            "split": self.split,
            "images": self.images,
            "objects": self.objects,
            "boxes": self.boxes,
            "dropped": self.dropped,
            "skipped": skipped_rows(self.skipped),
            "encode_seconds": json_number(self.encode_seconds),
            "average_precision": {name: json_number(value) for name, value in self.average_precision.items()},
        }

    def save(self, folder: str | Path, **about: str) -> None:
        """Write ``report.json``, and ``masks.json`` in COCO's result format.

        Raises:
            InputError: the folder cannot be written.
        """
        write_json(folder, {**about, **self.to_dict()})
        with atomic_write(Path(folder) / _MASKS) as temporary:
            temporary.write_text(json.dumps(self.masks) + "\n", encoding="utf-8")

    def table(self) -> Table:
        """The scores in one row."""
        values = ("-" if math.isnan(value) else f"{value:.2%}" for value in self.average_precision.values())
        return tuple(self.average_precision), [tuple(values)]

    def summary(self) -> list[str]:
        """Number of images and boxes, time of the image encoder, and the boxes that were left out."""
        lines = [
            f"{self.images} images of {self.split}, {self.objects} objects, {self.boxes} boxes; encoding takes "
            f"{self.encode_seconds * 1000:.0f} ms (median)"
        ]
        return lines + [f"{count} boxes left out: {reason}" for reason, count in self.dropped.items()]


class DetectionEvaluator:
    """Scores a promptable model with the boxes of a file.

    Args:
        predictor: the model.
        data: data set in COCO's JSON, whose image and category ids the boxes have.
        split: the split.
        file: boxes in COCO's result format: a list of ``{image_id, category_id, bbox, score}``.

    Raises:
        DataError: the data are in another layout, or the file is not in this format or of other images.
        DependencyError: pycocotools is not installed.
    """

    def __init__(self, predictor: Predictor, data: str | Path, split: str, file: Path) -> None:
        self.predictor, self.data, self.split = predictor, data, split
        self.samples = InstanceData.open(data, [split])
        if self.samples.layout != "coco_instances":
            raise DataError(
                f"{file}: boxes belong to images by the ids of COCO's JSON; {data} has the layout {self.samples.layout}"
            )
        self.ids, categories = _read_ids(self.samples)
        self.boxes, self.dropped = read_detections(file, set(self.ids), categories)
        self.scorer = CocoScorer()
        self.masks: list[dict[str, Any]] = []
        self.parts: Sequence[Part[tuple[int, int, float]]] = (Part(split, self.samples, self.score),)

    def score(self, index: int, image: str) -> tuple[int, int, float]:
        """Draw the masks of one image; returns the number of objects and of boxes, and the seconds of the encoder."""
        pixels, instances = self.samples[index]
        identity = self.ids[index]
        height, width = pixels.shape[:2]
        boxes, records = [], []
        for detection in self.boxes.get(identity, ()):
            x1, y1, x2, y2 = detection.box
            if x1 < width and y1 < height and x2 > 0 and y2 > 0:
                boxes.append(detection)
            else:
                self.dropped["outside of its image"] += 1
        start = time.perf_counter()
        embedding = self.predictor.encode(pixels)
        seconds = time.perf_counter() - start
        for first in range(0, len(boxes), _AT_ONCE):
            part = boxes[first : first + _AT_ONCE]
            best = embedding.prompt(boxes=[detection.box for detection in part]).best
            for detection, mask in zip(part, best, strict=True):
                runs = as_runs(mask)
                records.append(
                    {"segmentation": runs, "predicted_iou": detection.score, "category_id": detection.category}
                )
                text = {**runs, "counts": runs["counts"].decode("ascii")}
                self.masks.append(
                    {
                        "image_id": identity,
                        "category_id": detection.category,
                        "segmentation": text,
                        "score": detection.score,
                    }
                )
        self.scorer.add(instances, records)
        return len(instances), len(boxes), seconds

    def summarise(self, scores: list[list[tuple[int, int, float]]], skipped: dict[str, str]) -> DetectionEvaluation:
        """Compute the average precision over all images.

        Raises:
            DataError: no image has an object.
        """
        objects, boxes, seconds = zip(*scores[0], strict=True)
        if not sum(objects):
            raise DataError(f"{self.data}: no objects in the {len(self.samples)} images of {self.split!r}")
        return DetectionEvaluation(
            len(objects),
            self.split,
            sum(objects),
            sum(boxes),
            round(float(np.median(seconds)), 4),
            self.scorer.average_precision(),
            self.masks,
            dict(self.dropped),
            skipped,
        )


def read_detections(
    file: Path, images: set[Id], categories: Mapping[Id, str]
) -> tuple[dict[Id, list[Detection]], Counter[str]]:
    """Read boxes in COCO's result format.

    Args:
        file: the JSON file.
        images: ids of the images.
        categories: names of the categories by id.

    Returns:
        Boxes by image id, and why others were left out, with their number.

    Raises:
        DataError: the file is not in this format, or none of its boxes is of one of the images and categories.
    """
    if texts := [each for each in categories if isinstance(each, str)]:
        raise DataError(
            f"the data set has the category id {texts[0]!r:.80}: average precision needs whole numbers as ids"
        )
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read as JSON ({' '.join(str(error).split())})") from error
    form = "a list of {image_id, category_id, bbox: [x, y, width, height], score}"
    if not isinstance(entries, list):
        raise DataError(f"{file}: a {type(entries).__name__} at the top instead of {form}")
    found: dict[Id, list[Detection]] = {}
    unknown: dict[str, Counter[Id]] = {"image": Counter(), "category": Counter()}
    dropped: Counter[str] = Counter()
    for number, entry in enumerate(entries):
        try:
            image, category, score = as_id(entry["image_id"]), as_id(entry["category_id"]), float(entry["score"])
            x, y, width, height = map(float, entry["bbox"])
            if not all(map(math.isfinite, (x, y, width, height, score))):
                raise ValueError("not all numbers are finite")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)[:120]
            raise DataError(f"{file}: entry {number} is not one of {form} ({reason})") from error
        if image not in images:
            unknown["image"][image] += 1
        elif category not in categories:
            unknown["category"][category] += 1
        elif width <= 0 or height <= 0:
            dropped["without a width or height"] += 1
        else:
            found.setdefault(image, []).append(Detection(category, (x, y, x + width, y + height), score))
    for what, ids in unknown.items():
        if ids:
            named = ", ".join(map(str, list(ids)[:_NAMED])) + ", ..." * (len(ids) > _NAMED)
            dropped[f"unknown {what} id {named}"] += ids.total()
    if not found:
        reasons = "; ".join(f"{count} boxes: {reason}" for reason, count in dropped.items()) or "it is empty"
        known = ", ".join(map(str, sorted(images, key=lambda each: (isinstance(each, str), each))[:_NAMED]))
        raise DataError(f"{file}: no box for the images of the data, whose ids are {known}, ... ({reasons})")
    return found, dropped


def _read_ids(samples: InstanceData) -> tuple[list[Id], dict[Id, str]]:
    """Id of each image, and names of the categories by id, from the JSON files of the data."""
    by_name: dict[Path, dict[str, Id]] = {}
    categories: dict[Id, str] = {}
    for file in dict.fromkeys(file for _, file in samples.pairs):
        content = read_json(file)  # was read before, so that its form is known
        by_name[file] = {Path(entry["file_name"]).as_posix(): as_id(entry["id"]) for entry in content["images"]}
        categories |= {as_id(entry["id"]): str(entry["name"]) for entry in content["categories"]}
    ids: dict[Id, None] = {}
    for image, file in samples.pairs:
        parts = image.parts
        names = ("/".join(parts[start:]) for start in range(len(parts)))  # the longest first
        identity = next((by_name[file][name] for name in names if name in by_name[file]), None)
        if identity is None or identity in ids:
            raise DataError(f"{file}: the id of {image.name} is missing or not its own")
        ids[identity] = None
    return list(ids), categories
