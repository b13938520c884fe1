"""Scores of classifiers: top-1 and top-5 accuracy, each image resized and cropped as the model's preprocessing says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..data.labelled import open_labelled
from ..data.labels import IMAGENET, IMAGENET_IDS
from ..data.recognition import default_split
from ..errors import ConfigError, nearest
from ..prediction.predictor import Predictor
from .metrics import ClassifyScores
from .report import REPORT, Part, Table, skipped_rows, write_csv, write_json

_GUESSES = 5


@dataclass(frozen=True)
class ImageGuesses:
    """The model's guesses for one image.

    Attributes:
        image: path below the data set's folder, with forward slashes.
        target: the image's class, an index into the model's classes.
        guesses: the model's best classes, the most probable first; all of the model's classes, five at most.
        score: probability of the first guess.
    """

    image: str
    target: int
    guesses: tuple[int, ...]
    score: float


@dataclass(frozen=True)
class ClassifyEvaluation:
    """Report of a classifier.

    Attributes:
        scores: counts over all images.
        per_image: guesses for every image that was scored, in the data's order.
        names: names of the model's classes; empty if it has none.
        split: the split that was scored.
        skipped: images that could not be scored, each with the reason.
    """

    scores: ClassifyScores
    per_image: tuple[ImageGuesses, ...]
    names: tuple[str, ...]
    split: str
    skipped: dict[str, str] = field(default_factory=dict)
    files: ClassVar[tuple[str, ...]] = (REPORT, "per_image.csv")

    @property
    def images(self) -> int:
        """Number of images that were scored."""
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
        """Scores of the whole data set, ready for JSON."""
        return {
            "split": self.split,
            "images": self.images,
            "skipped": skipped_rows(self.skipped),
            **self.scores.to_dict(),
        }

    def save(self, folder: str | Path, **about: str) -> None:
        """Write ``report.json`` (everything) and ``per_image.csv``.

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
        write_json(folder, {**about, **self.to_dict(), "per_image": rows})
        header = ["image", "class", "score", *(f"guess {i + 1}" for i in range(_GUESSES))]
        cells = ([row["image"], row["class"], row["score"], *row["guesses"]] for row in rows)
        write_csv(Path(folder) / "per_image.csv", header, cells)

    def table(self) -> Table | None:
        """None: the summary has both figures."""
        return None

    def summary(self) -> list[str]:
        """Top-1 and top-5 accuracy."""
        return [f"top-1 {self.top1:.2%}  top-5 {self.top5:.2%}  ({self.images} images of {self.split})"]

    def name(self, index: int) -> str:
        """Name of a class; "class 0" if the model has no names."""
        return self.names[index] if self.names else f"class {index}"


class ClassifyEvaluator:
    """Scores classifiers. The data's classes are some or all of the model's."""

    options: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, predictor: Predictor, data: str | Path, split: str | None) -> None:
        split = split or default_split(data, "classify")
        self.predictor = predictor
        self.samples = open_labelled(data, [split], "classify").with_bands(predictor.bands)
        self.model_class = _model_classes(self.samples.labels.names, predictor)
        self.parts: Sequence[Part[ImageGuesses]] = (Part(split, self.samples, self.score),)

    def score(self, index: int, image: str) -> ImageGuesses:
        """Classify one image."""
        pixels, label = self.samples[index]
        scores = self.predictor.classify(pixels).scores
        best = np.argsort(-scores, kind="stable")[:_GUESSES].tolist()
        return ImageGuesses(image, self.model_class[label], tuple(best), float(scores[best[0]]))

    def summarise(self, scores: list[list[ImageGuesses]], skipped: dict[str, str]) -> ClassifyEvaluation:
        """Count correct guesses."""
        per_image = scores[0]
        first = sum(image.guesses[0] == image.target for image in per_image)
        five = sum(image.target in image.guesses for image in per_image)
        counts = ClassifyScores(len(per_image), first, five)
        names = self.predictor.info.labels.names
        return ClassifyEvaluation(counts, tuple(per_image), names, self.parts[0].name, skipped)

    def save(self, report: ClassifyEvaluation, folder: str | Path, **about: str) -> None:
        """Write the report's files."""
        report.save(folder, **about)


def _model_classes(names: Sequence[str], predictor: Predictor) -> list[int]:
    """Index of the model's class for each class of the data.

    Classes match by name. If the model has ImageNet's 1,000 classes, WordNet ids match, too. A model without names of
    classes matches data with as many classes.
    """
    own, count = predictor.info.labels.names, predictor.info.num_classes
    if set(names) <= set(own):
        return [own.index(name) for name in names]
    if set(names) <= set(IMAGENET_IDS) and (own == IMAGENET.names or (not own and count == len(IMAGENET_IDS))):
        return [IMAGENET_IDS.index(name) for name in names]
    if not own and count == len(names):
        return list(range(count))
    if own:
        unknown = next(name for name in names if name not in own)
        raise ConfigError(f"the model has no class {unknown!r} of the data{nearest(unknown, own)}")
    raise ConfigError(
        f"the model has {count} classes without names, the data {len(names)}: give data with {count} classes"
    )
