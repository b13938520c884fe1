"""Scores of promptable models: masks from boxes and clicks, compared with the masks of known objects.

The protocol is that of the Segment Anything papers (arXiv 2304.02643; EfficientViT-SAM, arXiv 2402.05008). Every object
counts once, whatever its size. The model returns three masks, and the one with the highest predicted IoU is taken.
Each click goes to the centre of the larger error (:mod:`foveal.evaluation.clicks`). All earlier clicks are given again
with each new one, and no mask is fed back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from ..data.instances import Instance, InstanceData, default_split
from ..errors import ConfigError, DataError
from ..prediction.mask_results import MaskResult
from ..prediction.predictor import Predictor
from ..prediction.prompting import Embedding
from .boundary import boundary_iou
from .clicks import Click, next_click
from .coco import CocoScorer, as_runs, has_coco_tools
from .detections import DetectionEvaluation, DetectionEvaluator
from .metrics import json_number
from .report import REPORT, Part, Table, skipped_rows, write_csv, write_json

Prompts = Literal["all", "boxes", "clicks"]
Size = Literal["all", "small", "medium", "large"]
SIZES: tuple[Size, ...] = ("small", "medium", "large")
CLICKS = (1, 3, 5)  #: numbers of clicks after which the masks are scored
SMALL, LARGE = 32**2, 96**2  #: largest area of COCO's small objects and smallest of its large ones, in pixels

Note = Callable[[str, int, NDArray[np.bool_]], None]  # prompt, index of the object, predicted mask


@dataclass(frozen=True)
class ObjectScore:
    """Scores of one object.

    Attributes:
        image: path below the data set's folder, with forward slashes.
        category: class of the object, as the data numbers its classes.
        area: area in pixels, as the data gives it.
        scores: IoU and boundary IoU by prompt.
    """

    image: str
    category: int
    area: float
    scores: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class PromptEvaluation:
    """Report of a promptable model.

    Attributes:
        per_object: scores of every object of at least one pixel, in the data's order.
        images: number of images that were scored; those without objects are left out.
        split: the split that was scored.
        encode_seconds: median time from an image to its embedding.
        average_precision: COCO's scores of the masks from boxes, ranked by predicted IoU; ``None`` without boxes or
            without pycocotools.
        skipped: images that could not be scored, each with the reason.
    """

    per_object: tuple[ObjectScore, ...] = field(repr=False)
    images: int
    split: str
    encode_seconds: float
    average_precision: dict[str, float] | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    files: ClassVar[tuple[str, ...]] = (REPORT, "per_object.csv")

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts: "box", "box, surest of 3", "1 click", ...; "filled box" scores the box itself as a mask."""
        return tuple(self.per_object[0].scores)

    def miou(self, prompt: str, size: Size = "all") -> float:
        """Mean IoU over the objects of a size; NaN if there is none.

        Objects of exactly 32 x 32 or 96 x 96 pixels count in both sizes, as in the papers.
        """
        return self._mean(prompt, 0, size)

    def boundary_iou(self, prompt: str) -> float:
        """Mean boundary IoU over the objects."""
        return self._mean(prompt, 1, "all")

    def miou_by_image(self, prompt: str) -> float:
        """Mean over images of the mean IoU of each image's objects: every image has the same weight."""
        images: dict[str, list[float]] = {}
        for score in self.per_object:
            images.setdefault(score.image, []).append(score.scores[prompt][0])
        return float(np.mean([np.mean(values) for values in images.values()]))

    def count(self, size: Size = "all") -> int:
        """Number of objects of a size."""
        return sum(_has_size(size, score.area) for score in self.per_object)

    def _mean(self, prompt: str, column: int, size: Size) -> float:
        values = [score.scores[prompt][column] for score in self.per_object if _has_size(size, score.area)]
        return float(np.mean(values)) if values else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Scores of the whole data set, ready for JSON."""
        precision = self.average_precision
        return {
            "split": self.split,
            "images": self.images,
            "objects": self.count(),
            "objects_by_size": {size: self.count(size) for size in SIZES},
            "skipped": skipped_rows(self.skipped),
            "encode_seconds": round(self.encode_seconds, 4),
            "prompts": {
                prompt: {
                    "miou": json_number(self.miou(prompt)),
                    **{size: json_number(self.miou(prompt, size)) for size in SIZES},
                    "by_image": json_number(self.miou_by_image(prompt)),
                    "boundary_iou": json_number(self.boundary_iou(prompt)),
                }
                for prompt in self.prompts
            },
            "average_precision": precision and {name: json_number(value) for name, value in precision.items()},
        }

    def save(self, folder: str | Path, **about: str) -> None:
        """Write ``report.json`` (everything) and ``per_object.csv``.

        Raises:
            InputError: the folder cannot be written.
        """
        rows = [
            {
                "image": score.image,
                "category": score.category,
                "area": score.area,
                **{name: json_number(iou) for name, (iou, _) in score.scores.items()},
                **{f"{name}, boundary": json_number(boundary) for name, (_, boundary) in score.scores.items()},
            }
            for score in self.per_object
        ]
        write_json(folder, {**about, **self.to_dict(), "per_object": rows})
        columns = list(rows[0])
        write_csv(Path(folder) / "per_object.csv", columns, ([row[name] for name in columns] for row in rows))

    def table(self) -> Table:
        """One row per prompt."""
        rows = [
            (
                prompt,
                _percent(self.miou(prompt)),
                *(_percent(self.miou(prompt, size)) for size in SIZES),
                _percent(self.miou_by_image(prompt)),
                _percent(self.boundary_iou(prompt)),
            )
            for prompt in self.prompts
        ]
        return ("prompt", "mIoU", *SIZES, "by image", "boundary IoU"), rows

    def summary(self) -> list[str]:
        """Number of objects, time of the image encoder, average precision."""
        sizes = ", ".join(f"{self.count(size)} {size}" for size in SIZES)
        lines = [
            f"{self.images} images of {self.split}, {self.count()} objects ({sizes}); "
            f"encoding takes {self.encode_seconds * 1000:.0f} ms (median)"
        ]
        if self.average_precision:
            figures = "  ".join(f"{name} {_percent(value)}" for name, value in self.average_precision.items())
            lines.append(f"masks from boxes: {figures}")
        elif "box" in self.prompts:
            lines.append("no average precision: it needs pycocotools (pip install 'foveal[coco]')")
        return lines


class ImageObjects(NamedTuple):
    """Scores of the objects of one image, and the seconds that its embedding took."""

    objects: list[ObjectScore]
    encode_seconds: float


class PromptEvaluator:
    """Scores promptable models. Each image is encoded once and prompted for each of its objects, or for given boxes."""

    options: ClassVar[Mapping[str, Any]] = {"prompts": "all"}

    def __init__(
        self, predictor: Predictor, data: str | Path, split: str | None, *, prompts: Prompts | str | Path
    ) -> None:
        is_file = Path(prompts).suffix.lower() == ".json"
        if not is_file and prompts not in get_args(Prompts):
            words = ", ".join(map(repr, get_args(Prompts)))
            raise ConfigError(f"prompts={str(prompts)!r}: give {words} or a .json file of boxes")
        split = split or default_split(Path(data))
        self.data, self.predictor = data, predictor
        self.given = DetectionEvaluator(predictor, data, split, Path(prompts)) if is_file else None
        if self.given is not None:
            self.parts: Sequence[Part[Any]] = self.given.parts
            return
        self.boxes, self.clicks = prompts != "clicks", prompts != "boxes"
        self.samples = InstanceData.open(data, [split])
        self.scorer = CocoScorer() if self.boxes and has_coco_tools() else None
        self.parts = (Part(split, self.samples, self.score),)

    def score(self, index: int, image: str) -> ImageObjects | None:
        """Encode one image and score the masks of its objects; ``None`` if it has no object of a pixel or more."""
        pixels, instances = self.samples[index]
        instances = [instance for instance in instances if instance.mask.any()]  # the stated area may be wrong
        if not instances:
            return None
        start = time.perf_counter()
        embedding = self.predictor.encode(pixels)
        seconds = time.perf_counter() - start
        scores: list[dict[str, tuple[float, float]]] = [{} for _ in instances]

        def note(prompt: str, index: int, mask: NDArray[np.bool_]) -> None:
            target = instances[index].mask
            scores[index][prompt] = iou(target, mask), boundary_iou(target, mask)

        if self.boxes:
            self._prompt_boxes(embedding, instances, note)
        if self.clicks:
            _prompt_middles(embedding, instances, note)
            _prompt_clicks(embedding, [instance.mask for instance in instances], note)
        for position, instance in enumerate(instances):
            note("filled box", position, filled_box(instance))
        objects = [ObjectScore(image, x.category, x.area, s) for x, s in zip(instances, scores, strict=True)]
        return ImageObjects(objects, seconds)

    def _prompt_boxes(self, embedding: Embedding, instances: Sequence[Instance], note: Note) -> None:
        """Prompt with the box of each object, once for one mask and once for three."""
        boxes = [instance.box for instance in instances]
        for index, result in enumerate(_split_prompts(embedding.prompt(boxes=boxes, multimask=False))):
            note("box", index, result.best)
        records = []
        results = _split_prompts(embedding.prompt(boxes=boxes))
        for index, (instance, result) in enumerate(zip(instances, results, strict=True)):
            note("box, surest of 3", index, result.best)
            note("box, best of 3", index, _best_mask(result, instance.mask))
            if self.scorer is not None:
                runs, value = as_runs(result.best), float(result.iou.max())
                records.append({"segmentation": runs, "predicted_iou": value, "category_id": instance.category})
        if self.scorer is not None:
            self.scorer.add(instances, records)

    def summarise(self, scores: list[list[Any]], skipped: dict[str, str]) -> PromptEvaluation | DetectionEvaluation:
        """Gather the objects of all images and compute the average precision.

        Raises:
            DataError: no image has an object.
        """
        if self.given is not None:
            return self.given.summarise(scores, skipped)
        images, split = scores[0], self.parts[0].name
        if not images:
            raise DataError(f"{self.data}: no objects in the {len(self.samples)} images of {split!r}")
        objects = tuple(score for image in images for score in image.objects)
        seconds = float(np.median([image.encode_seconds for image in images]))
        precision = self.scorer.average_precision() if self.scorer else None
        return PromptEvaluation(objects, len(images), split, seconds, precision, skipped)

    def save(self, report: PromptEvaluation | DetectionEvaluation, folder: str | Path, **about: str) -> None:
        """Write the report's files."""
        report.save(folder, **about)


def _prompt_middles(embedding: Embedding, instances: Sequence[Instance], note: Note) -> None:
    """Prompt with one click in the middle of each object's box."""
    middles = [[[(x1 + x2) / 2, (y1 + y2) / 2]] for x1, y1, x2, y2 in (instance.box for instance in instances)]
    for index, result in enumerate(_split_prompts(embedding.prompt(middles, np.ones((len(instances), 1))))):
        note("middle of the box", index, result.best)


def _prompt_clicks(embedding: Embedding, targets: Sequence[NDArray[np.bool_]], note: Note) -> None:
    """Click on all objects in turn; an object whose mask is exact gets no further clicks."""
    masks = [np.zeros_like(target) for target in targets]
    clicks: list[list[Click]] = [[] for _ in targets]
    for count in range(1, max(CLICKS) + 1):
        active = []
        for index, (target, mask) in enumerate(zip(targets, masks, strict=True)):
            if click := next_click(target, mask, clicks[index]):
                clicks[index].append(click)
                active.append(index)
        if active:
            points = [[click[:2] for click in clicks[index]] for index in active]
            labels = [[click.label for click in clicks[index]] for index in active]
            for index, result in zip(active, _split_prompts(embedding.prompt(points, labels)), strict=True):
                masks[index] = result.best
                if count == 1:
                    note("1 click", index, result.best)
                    note("1 click, best of 3", index, _best_mask(result, targets[index]))
        if count > 1 and count in CLICKS:
            for index, mask in enumerate(masks):
                note(f"{count} clicks", index, mask)


def _best_mask(result: MaskResult, target: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return max(result.masks, key=lambda mask: iou(target, mask))


def _split_prompts(result: MaskResult) -> Iterator[MaskResult]:
    """The result of each prompt, one at a time: at the image's size, the masks of all prompts can be large."""
    for low_res, values in zip(result.low_res, result.iou, strict=True):
        yield MaskResult(low_res[None], values, result.size)


def iou(target: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> float:
    """Intersection over union of two masks, of which at least one has a pixel."""
    return float((target & predicted).sum() / (target | predicted).sum())


def filled_box(instance: Instance) -> NDArray[np.bool_]:
    """The pixels whose centre is in the object's box, as a mask ``(H, W)``: a baseline without a model."""
    x1, y1, x2, y2 = instance.box
    rows, columns = (np.arange(length) + 0.5 for length in instance.mask.shape)
    return ((rows >= y1) & (rows < y2))[:, None] & ((columns >= x1) & (columns < x2))


def _has_size(size: Size, area: float) -> bool:
    return {"all": True, "small": area <= SMALL, "medium": SMALL <= area <= LARGE, "large": area >= LARGE}[size]


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.2%}"
