"""Scoring classifiers: top-1 and top-5 over a folder of labelled images, each resized and cropped as the model says."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..data.classification import class_folders
from ..data.labelled import open_labelled
from ..data.labels import IMAGENET, IMAGENET_IDS
from ..data.layout import describe
from ..data.shards import find_shards, is_pattern
from ..errors import ConfigError, DataError, InputError, nearest
from ..files import atomic_write, ensure_folder
from ..prediction.predictor import Predictor
from ..progress import Progress
from .metrics import ClassifyScores

REPORT = "report.json"
_GUESSES = 5


@dataclass(frozen=True)
class ImageGuesses:
    """One image's part.

    Attributes:
        image: path below the data set's folder, with forward slashes.
        target: its class, an index of the model's.
        guesses: the model's best classes, the most probable first; as many as it has, five at most.
        score: probability of the first.
    """

    image: str
    target: int
    guesses: tuple[int, ...]
    score: float


@dataclass(frozen=True)
class ClassifyEvaluation:
    """Scores with what they were taken on.

    Attributes:
        scores: counts over all images.
        per_image: every image that was scored, in the data's order.
        names: of the model's classes; empty where it has none.
        split: which part of the data.
        skipped: images that could not be scored -> why.
    """

    scores: ClassifyScores
    per_image: tuple[ImageGuesses, ...]
    names: tuple[str, ...]
    split: str
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """How many images were scored."""
        return self.scores.images

    @property
    def top1(self) -> float:
        """Share of the images whose class is the first guess."""
        return self.scores.first / self.scores.images

    @property
    def top5(self) -> float:
        """Share of the images whose class is among the first five guesses."""
        return self.scores.five / self.scores.images

    def to_dict(self) -> dict[str, Any]:
        """Everything but the images' own guesses, ready for JSON."""
        return {
            "split": self.split,
            "images": self.images,
            "skipped": [{"image": image, "error": error} for image, error in self.skipped.items()],
            **self.scores.to_dict(),
        }

    def save(self, folder: str | Path, **about: str) -> None:
        """Write ``report.json`` (all of it) and ``per_image.csv``.

        Raises:
            InputError: the folder cannot be written.
        """
        rows = [
            {
                "image": image.image,
                "class": self.name(image.target),
                "guesses": [self.name(guess) for guess in image.guesses],
                "score": round(image.score, 6),
            }
            for image in self.per_image
        ]
        with atomic_write(Path(folder) / REPORT) as temporary:
            temporary.write_text(json.dumps({**about, **self.to_dict(), "per_image": rows}), encoding="utf-8")
        with (
            atomic_write(Path(folder) / "per_image.csv") as temporary,
            temporary.open("w", encoding="utf-8", newline="") as file,
        ):
            table = csv.writer(file)
            table.writerow(["image", "class", "score", *(f"guess {i + 1}" for i in range(_GUESSES))])
            table.writerows([row["image"], row["class"], row["score"], *row["guesses"]] for row in rows)

    def name(self, index: int) -> str:
        """Name of a class, "class 0" where the model has none."""
        return self.names[index] if self.names else f"class {index}"


def evaluate_classes(
    predictor: Predictor,
    data: str | Path,
    *,
    split: str | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> ClassifyEvaluation:
    """Score a predictor of the task "classify".

    Args:
        predictor: of :func:`foveal.load`.
        data: folder of labelled images (see :mod:`foveal.data.classification`), or a pattern of tar files. Its classes
            are some or all of the model's, by name; folders with WordNet ids suit models of ImageNet's classes.
        split: part of it; default: "test", else "val", else all there is.
        out: folder for ``report.json`` and ``per_image.csv``.
        progress: where to show progress; default: nowhere.

    Raises:
        ConfigError: the model does not classify, or the data's classes are not the model's.
        DataError: the data cannot be used, or none of its images can.
        InputError: ``out`` cannot be written.
    """
    if predictor.info.task != "classify":
        raise ConfigError(f"evaluate_classes is for classifiers, this model is for {predictor.info.task!r}")
    root = Path(data)
    split = split or _default_split(data)
    samples = open_labelled(data, [split], "classify")
    classes = _model_classes(samples.labels.names, predictor)
    if out is not None:
        ensure_folder(out)
    per_image: list[ImageGuesses] = []
    skipped: dict[str, str] = {}
    shown = progress or Progress(enabled=False)
    with shown.bar(f"evaluate {split}", len(samples)) as bar:
        for index in range(len(samples)):
            path = samples.name(index)
            name = (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()
            try:
                image, label = samples[index]
                scores = predictor.classify(image).scores
            except (DataError, InputError) as error:
                skipped[name] = str(error)
                shown.note(f"skipped: {error}")
            else:
                best = np.argsort(-scores, kind="stable")[:_GUESSES].tolist()
                per_image.append(ImageGuesses(name, classes[label], tuple(best), float(scores[best[0]])))
            bar.advance()
    if not per_image:
        name, error = next(iter(skipped.items()))
        raise DataError(f"{root}: none of the {len(skipped)} images of {split!r} can be scored; the first: {error}")
    first = sum(image.guesses[0] == image.target for image in per_image)
    five = sum(image.target in image.guesses for image in per_image)
    counts = ClassifyScores(len(per_image), first, five)
    found = ClassifyEvaluation(counts, tuple(per_image), predictor.info.labels.names, split, skipped)
    if out is not None:
        found.save(out, model=predictor.info.ref, data=str(data))
    return found


def _default_split(data: str | Path) -> str:
    have = {} if is_pattern(data) else class_folders(Path(data), describe(Path(data)))
    have = {name for name, folders in have.items() if folders} or set(find_shards(data)[2])
    return next((name for name in ("test", "testing", "val", "valid", "validation", "all") if name in have), "test")


def _model_classes(names: Sequence[str], predictor: Predictor) -> list[int]:
    """Index of the model's class for each class of the data."""
    own, count = predictor.info.labels.names, predictor.info.num_classes
    if set(names) <= set(own):
        return [own.index(name) for name in names]
    if set(names) <= set(IMAGENET_IDS) and (own == IMAGENET.names or (not own and count == len(IMAGENET_IDS))):
        return [IMAGENET_IDS.index(name) for name in names]
    if not own and count == len(names):
        return list(range(count))
    if own:
        foreign = next(name for name in names if name not in own)
        raise ConfigError(f"the model has no class {foreign!r} of the data{nearest(foreign, own)}")
    raise ConfigError(f"the model has {count} classes without names, the data {len(names)}")
