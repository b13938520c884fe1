"""Scores of regression models on a data set: errors of the maps over the valid pixels of all images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..data.labelled import open_labelled
from ..data.recognition import default_split
from ..data.regression import RegressionData
from ..errors import ConfigError, DataError
from ..prediction.predictor import Predictor
from .metrics import json_number
from .regression import FIGURES, RegressionScores, in_unit, regression_sums
from .report import REPORT, Part, Table, skipped_rows, write_csv, write_json


@dataclass(frozen=True)
class MapScore:
    """Scores of one image: its path below the data set's folder, and its errors."""

    image: str
    scores: RegressionScores


@dataclass(frozen=True)
class RegressionEvaluation:
    """Report of a regression model; its figures are attributes, too: ``report.abs_rel``.

    Attributes:
        scores: errors over the valid pixels of all images.
        per_image: those of each image, in the data's order.
        split: name of the split.
        skipped: images that could not be scored, each with the reason.
        tiles: options of the tiles, if images were seen in tiles.
    """

    scores: RegressionScores
    per_image: tuple[MapScore, ...]
    split: str
    skipped: dict[str, str] = field(default_factory=dict)
    tiles: dict[str, int] = field(default_factory=dict)
    files: ClassVar[tuple[str, ...]] = (REPORT, "per_image.csv")

    def __getattr__(self, name: str) -> float:
        if name in FIGURES and name in self.scores.figures:
            return self.scores.figures[name]
        raise AttributeError(f"{type(self).__name__} has no figure {name!r}")

    @property
    def images(self) -> int:
        """Number of images that were scored."""
        return len(self.per_image)

    def to_dict(self) -> dict[str, Any]:
        """Scores of the whole split, ready for JSON."""
        return {
            "split": self.split,
            "images": self.images,
            "pixels": self.scores.pixels,
            "kind": self.scores.target.kind,
            "unit": self.scores.target.unit,
            **self.scores.to_dict(),
            **self.tiles,
            "skipped": skipped_rows(self.skipped),
        }

    def save(self, folder: str | Path, **about: str) -> None:
        """Write ``report.json`` (everything) and ``per_image.csv``.

        Raises:
            InputError: the folder cannot be written.
        """
        rows = [{"image": each.image, "pixels": each.scores.pixels, **_figures(each.scores)} for each in self.per_image]
        write_json(folder, {**about, **self.to_dict(), "per_image": rows})
        columns = ["image", "pixels", *self.scores.figures]
        write_csv(Path(folder) / "per_image.csv", columns, ([row[name] for name in columns] for row in rows))

    def table(self) -> Table:
        """One row per figure."""
        unit = self.scores.target.unit
        rows = [(FIGURES[name][0], in_unit(name, value, unit)) for name, value in self.scores.figures.items()]
        if self.scores.target.kind == "values" and len(self.scores.names) > 1:
            rows += [
                (f"{FIGURES[figure][0]} of {name}", "-" if value is None else f"{value:.4g} {unit}".rstrip())
                for name, figures in self.scores.channels().items()
                for figure, value in figures.items()
            ]
        return (self.scores.target.kind, "error"), rows

    def summary(self) -> list[str]:
        """Where the figures come from, and what they leave out."""
        where = "".join(f", {name} {value}" for name, value in self.tiles.items())
        lines = [f"{self.scores.pixels:,} valid pixels in {self.images} images of {self.split}{where}"]
        if np.isnan(self.scores.figures.get("rmse_log", 0.0)):
            lines.append("RMSE log: some predicted depths are not above 0 and have no logarithm")
        return lines


def _figures(scores: RegressionScores) -> dict[str, float | None]:
    return {name: json_number(value) for name, value in scores.figures.items()}


class RegressEvaluator:
    """Scores regression models; images without a valid pixel are left out."""

    options: ClassVar[Mapping[str, Any]] = {"tile": None, "overlap": None}

    def __init__(
        self, predictor: Predictor, data: str | Path, split: str | None, *, tile: int | None, overlap: int | None
    ) -> None:
        split = split or default_split(data, "regress")
        samples = open_labelled(data, [split], "regress").with_bands(predictor.bands)
        assert isinstance(samples, RegressionData)
        predictor.check_tiles(tile, overlap)
        own, count = predictor.info.target, predictor.info.num_classes
        if (own.kind, count) != (samples.target.kind, len(samples.labels.names)):
            raise ConfigError(
                f"the model predicts {own.kind} in {count} channels, the data has {samples.target.kind} in "
                f"{len(samples.labels.names)}: give a model and data of one kind"
            )
        if own.unit and samples.target.unit and own.unit != samples.target.unit:
            raise ConfigError(
                f"the model predicts {own.kind} in {own.unit}, the data is in {samples.target.unit}: correct 'scale' "
                "and 'unit' of 'target' in dataset.yaml"
            )
        self.predictor, self.samples, self.target = predictor, samples, samples.target
        given = {"tile": tile, "overlap": overlap}
        self.tiles: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        self.data = data
        self.parts: Sequence[Part[MapScore]] = (Part(split, samples, self.score),)

    def score(self, index: int, image: str) -> MapScore | None:
        """Score one image; ``None`` if its map has no valid pixel."""
        pixels, target = self.samples[index]
        values = self.predictor.regress(pixels, **self.tiles).values
        sums = regression_sums(values, target, self.target.kind)
        return MapScore(image, RegressionScores(sums, self.target, self.samples.labels.names)) if sums[1] else None

    def summarise(self, scores: list[list[MapScore]], skipped: dict[str, str]) -> RegressionEvaluation:
        """Add up the sums of all images.

        Raises:
            DataError: no map has a valid pixel.
        """
        found, split = scores[0], self.parts[0].name
        if not found:
            raise DataError(f"{self.data}: no valid pixel in the maps of {split!r}: nothing to score")
        total = np.sum([each.scores.sums for each in found], axis=0)
        whole = RegressionScores(total, self.target, self.samples.labels.names)
        return RegressionEvaluation(whole, tuple(found), split, skipped, self.tiles)

    def save(self, report: RegressionEvaluation, folder: str | Path, **about: str) -> None:
        """Write the report's files."""
        report.save(folder, **about)
