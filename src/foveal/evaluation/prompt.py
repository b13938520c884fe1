"""Scoring promptable models: boxes and clicks on objects whose masks are known.

As the Segment Anything papers do (arXiv 2304.02643; EfficientViT-SAM, arXiv 2402.05008): every object counts once,
whatever its size; three masks are asked for, and the one that the model expects to fit best is taken; clicks go to the
middle of the larger error (:mod:`foveal.evaluation.clicks`), all of them are given again each time, no mask is fed
back.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..data.instances import Instance, InstanceData, default_split
from ..errors import ConfigError, DataError, InputError
from ..files import atomic_write, ensure_folder
from ..prediction.mask_results import MaskResult
from ..prediction.predictor import Predictor
from ..prediction.prompting import Embedding
from ..progress import Progress
from .boundary import boundary_iou
from .clicks import Click, next_click
from .coco import CocoScorer, as_runs, has_coco_tools
from .metrics import plain

REPORT = "report.json"
Prompts = Literal["all", "boxes", "clicks"]
Size = Literal["all", "small", "medium", "large"]
CLICKS = (1, 3, 5)  #: numbers of clicks that there are figures for
SMALL, LARGE = 32**2, 96**2  #: pixels of COCO's small objects at most, and of its large ones at least


@dataclass(frozen=True)
class ObjectScore:
    """One object's part.

    Attributes:
        image: path below the data set's folder, with forward slashes.
        category: its class, as the data numbers them.
        area: pixels, as the data has it.
        scores: IoU and boundary IoU by prompt.
    """

    image: str
    category: int
    area: float
    scores: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class PromptEvaluation:
    """Scores with what they were taken on.

    Attributes:
        per_object: every object of at least one pixel, in the data's order.
        images: how many were scored; those without objects are left out.
        split: which part of the data.
        encode_seconds: median time from an image to its embedding.
        average_precision: COCO's scores of the masks from boxes, by predicted IoU; ``None`` without boxes or without
            pycocotools.
        skipped: images that could not be scored -> why.
    """

    per_object: tuple[ObjectScore, ...] = field(repr=False)
    images: int
    split: str
    encode_seconds: float
    average_precision: dict[str, float] | None = None
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def prompts(self) -> tuple[str, ...]:
        """What was asked with: "box", "box, surest of 3", "1 click", ...; "filled box" is the box itself."""
        return tuple(self.per_object[0].scores)

    def miou(self, prompt: str, size: Size = "all") -> float:
        """Mean IoU over the objects of a size, NaN where there is none.

        Objects of exactly 32 x 32 or 96 x 96 pixels count on both sides, as in the papers.
        """
        return self._mean(prompt, 0, size)

    def boundary_iou(self, prompt: str) -> float:
        """Mean boundary IoU over the objects."""
        return self._mean(prompt, 1, "all")

    def miou_by_image(self, prompt: str) -> float:
        """Mean over images of the mean IoU of each one's objects: an image with many weighs no more than another."""
        images: dict[str, list[float]] = {}
        for found in self.per_object:
            images.setdefault(found.image, []).append(found.scores[prompt][0])
        return float(np.mean([np.mean(values) for values in images.values()]))

    def count(self, size: Size = "all") -> int:
        """Objects of a size."""
        return sum(_is_of(size, found.area) for found in self.per_object)

    def _mean(self, prompt: str, which: int, size: Size) -> float:
        values = [found.scores[prompt][which] for found in self.per_object if _is_of(size, found.area)]
        return float(np.mean(values)) if values else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Everything but the objects' own scores, ready for JSON."""
        sizes: tuple[Size, ...] = ("small", "medium", "large")
        precision = self.average_precision
        return {
            "split": self.split,
            "images": self.images,
            "objects": self.count(),
            "objects_by_size": {size: self.count(size) for size in sizes},
            "skipped": [{"image": image, "error": error} for image, error in self.skipped.items()],
            "encode_seconds": round(self.encode_seconds, 4),
            "prompts": {
                prompt: {
                    "miou": plain(self.miou(prompt)),
                    **{size: plain(self.miou(prompt, size)) for size in sizes},
                    "by_image": plain(self.miou_by_image(prompt)),
                    "boundary_iou": plain(self.boundary_iou(prompt)),
                }
                for prompt in self.prompts
            },
            "average_precision": precision and {name: plain(value) for name, value in precision.items()},
        }

    def save(self, folder: str | Path, **about: str) -> None:
        """Write ``report.json`` (all of it) and ``per_object.csv``.

        Raises:
            InputError: the folder cannot be written.
        """
        rows = [
            {
                "image": found.image,
                "category": found.category,
                "area": found.area,
                **{name: plain(iou) for name, (iou, _) in found.scores.items()},
                **{f"{name}, boundary": plain(boundary) for name, (_, boundary) in found.scores.items()},
            }
            for found in self.per_object
        ]
        with atomic_write(Path(folder) / REPORT) as temporary:
            temporary.write_text(json.dumps({**about, **self.to_dict(), "per_object": rows}), encoding="utf-8")
        with (
            atomic_write(Path(folder) / "per_object.csv") as temporary,
            temporary.open("w", encoding="utf-8", newline="") as file,
        ):
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)


def evaluate_prompting(
    predictor: Predictor,
    data: str | Path,
    *,
    split: str | None = None,
    prompts: Prompts = "all",
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> PromptEvaluation:
    """Score a predictor of the task "prompt". Each image is encoded once.

    Args:
        predictor: of :func:`foveal.load`.
        data: folder of images with objects (see :mod:`foveal.data.instances`).
        split: part of it; default: "test", else "val", else all there is.
        prompts: "boxes", "clicks", or both.
        out: folder for ``report.json`` and ``per_object.csv``.
        progress: where to show progress; default: nowhere.

    Raises:
        ConfigError: the model is not promptable, or unknown ``prompts``.
        DataError: the data cannot be used, or none of its images can.
        DependencyError: polygons and runs need pycocotools, which is not installed.
        InputError: ``out`` cannot be written.
    """
    if predictor.info.task != "prompt":
        raise ConfigError(f"evaluate_prompting is for promptable models, this one is for {predictor.info.task!r}")
    if prompts not in ("all", "boxes", "clicks"):
        raise ConfigError(f"prompts={prompts!r}: all, boxes or clicks")
    root = Path(data)
    split = split or default_split(root)
    samples = InstanceData.open(root, [split])
    if out is not None:
        ensure_folder(out)
    per_object: list[ObjectScore] = []
    skipped: dict[str, str] = {}
    seconds: list[float] = []
    scorer = CocoScorer() if prompts != "clicks" and has_coco_tools() else None
    shown = progress or Progress(enabled=False)
    with shown.bar(f"evaluate {split}", len(samples)) as bar:
        for index in range(len(samples)):
            path = samples.name(index)
            name = (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()
            try:
                image, instances = samples[index]
                instances = [x for x in instances if x.area >= 1]
                if instances:
                    started = time.perf_counter()
                    embedding = predictor.encode(image)
                    taken = time.perf_counter() - started
                    per_object += _scored(embedding, instances, name, prompts, scorer)
                    seconds.append(taken)
            except (DataError, InputError) as error:
                skipped[name] = str(error)
                shown.note(f"skipped: {error}")
            bar.advance()
    if not per_object:
        if skipped:
            name, error = next(iter(skipped.items()))
            raise DataError(f"{root}: none of the {len(skipped)} images of {split!r} can be scored; the first: {error}")
        raise DataError(f"{root}: no objects in the {len(samples)} images of {split!r}")
    precision = scorer.average_precision() if scorer else None
    median = float(np.median(seconds))
    found = PromptEvaluation(tuple(per_object), len(seconds), split, median, precision, skipped)
    if out is not None:
        found.save(out, model=predictor.info.ref, data=str(data))
    return found


def _scored(
    embedding: Embedding, instances: Sequence[Instance], image: str, prompts: Prompts, scorer: CocoScorer | None
) -> list[ObjectScore]:
    scores: list[dict[str, tuple[float, float]]] = [{} for _ in instances]

    def note(prompt: str, index: int, mask: NDArray[np.bool_]) -> None:
        target = instances[index].mask
        scores[index][prompt] = iou(target, mask), boundary_iou(target, mask)

    if prompts != "clicks":
        records = []
        boxes = [instance.box for instance in instances]
        for index, answer in enumerate(_each(embedding.prompt(boxes=boxes, multimask=False))):
            note("box", index, answer.best)
        answers = _each(embedding.prompt(boxes=boxes))
        for index, (instance, answer) in enumerate(zip(instances, answers, strict=True)):
            note("box, surest of 3", index, answer.best)
            note("box, best of 3", index, _best(answer, instance.mask))
            if scorer is not None:
                runs, value = as_runs(answer.best), float(answer.iou.max())
                records.append({"segmentation": runs, "predicted_iou": value, "category_id": instance.category})
        if scorer is not None:
            scorer.add(instances, records)
    if prompts != "boxes":
        middles = [[[(x1 + x2) / 2, (y1 + y2) / 2]] for x1, y1, x2, y2 in (instance.box for instance in instances)]
        for index, answer in enumerate(_each(embedding.prompt(middles, np.ones((len(instances), 1))))):
            note("middle of the box", index, answer.best)
        _click(embedding, [instance.mask for instance in instances], note)
    for index, instance in enumerate(instances):
        note("filled box", index, filled_box(instance))
    return [ObjectScore(image, x.category, x.area, s) for x, s in zip(instances, scores, strict=True)]


def _click(
    embedding: Embedding, targets: Sequence[NDArray[np.bool_]], note: Callable[[str, int, NDArray[np.bool_]], None]
) -> None:
    """Click on all objects in turns; one that is met to the pixel gets no further clicks."""
    found = [np.zeros_like(target) for target in targets]
    clicks: list[list[Click]] = [[] for _ in targets]
    for count in range(1, max(CLICKS) + 1):
        active = []
        for index, (target, mask) in enumerate(zip(targets, found, strict=True)):
            if click := next_click(target, mask, clicks[index]):
                clicks[index].append(click)
                active.append(index)
        if active:
            points = [[click[:2] for click in clicks[index]] for index in active]
            labels = [[click.label for click in clicks[index]] for index in active]
            for index, answer in zip(active, _each(embedding.prompt(points, labels)), strict=True):
                found[index] = answer.best
                if count == 1:
                    note("1 click", index, answer.best)
                    note("1 click, best of 3", index, _best(answer, targets[index]))
        if count > 1 and count in CLICKS:
            for index, mask in enumerate(found):
                note(f"{count} clicks", index, mask)


def _best(answer: MaskResult, target: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return max(answer.masks, key=lambda mask: iou(target, mask))


def _each(result: MaskResult) -> Iterator[MaskResult]:
    """Answers one by one: at the image's size, those to all prompts of an image can be large."""
    for low_res, values in zip(result.low_res, result.iou, strict=True):
        yield MaskResult(low_res[None], values, result.size)


def iou(target: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> float:
    """Intersection over union of two masks, of which one has a pixel at least."""
    return float((target & predicted).sum() / (target | predicted).sum())


def filled_box(instance: Instance) -> NDArray[np.bool_]:
    """The pixels whose centre is in the object's box: what needs no model."""
    x1, y1, x2, y2 = instance.box
    rows, columns = (np.arange(length) + 0.5 for length in instance.mask.shape)
    return ((rows >= y1) & (rows < y2))[:, None] & ((columns >= x1) & (columns < x2))


def _is_of(size: Size, area: float) -> bool:
    return {"all": True, "small": area <= SMALL, "medium": SMALL <= area <= LARGE, "large": area >= LARGE}[size]
