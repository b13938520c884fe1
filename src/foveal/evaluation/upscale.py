"""Scores of super-resolution and restoration on sets of large images, by the protocol of published tables.

Small images are made from the large ones with MATLAB's ``imresize``, unless the data set has its own. PSNR and SSIM are
computed on the luma of the rounded picture, without a border of ``scale`` pixels, and averaged over the images of a
set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..data.degradation import degraded
from ..data.degradation_ranges import checked_ranges
from ..data.layout import ALL, SAME_SPLITS, describe
from ..data.super_resolution import SuperResolutionData, sets_of
from ..errors import ConfigError, DataError
from ..prediction.predictor import Predictor
from .fidelity import UpscaleScores, fidelity, for_json
from .report import REPORT, Part, Table, skipped_rows, write_csv, write_json


@dataclass(frozen=True)
class PictureScore:
    """Scores of one image: its path below the data set's folder, PSNR of the luma in dB, SSIM."""

    image: str
    psnr: float
    ssim: float


@dataclass(frozen=True)
class SetScores:
    """Scores of one set, with the protocol that gave them.

    Attributes:
        name: name of the set.
        scores: means over its images.
        per_image: scores of its images, in the data's order.
        small: where the small images are from.
        border: pixels left out at each side.
    """

    name: str
    scores: UpscaleScores
    per_image: tuple[PictureScore, ...]
    small: str
    border: int

    def to_dict(self) -> dict[str, Any]:
        """Scores and protocol of the set, ready for JSON."""
        return {
            "images": self.scores.images,
            **self.scores.to_dict(),
            "small_images": self.small,
            "border": self.border,
            "channel": "Y of RGB",
        }


@dataclass(frozen=True)
class UpscaleEvaluation:
    """Report of a model for super-resolution or restoration. ``report["set5"]`` gives the scores of a set.

    Attributes:
        scale: sides of the large image divided by those of the small one.
        sets: scores of each set that has a scored image: the requested set, or all in the order of their names.
        skipped: images that could not be scored, each with the reason.
    """

    scale: int
    sets: tuple[SetScores, ...]
    skipped: dict[str, str] = field(default_factory=dict)
    files: ClassVar[tuple[str, ...]] = (REPORT, "per_image.csv")

    def __getitem__(self, name: str) -> UpscaleScores:
        return next(part.scores for part in self.sets if part.name == name)

    @property
    def split(self) -> str:
        """Names of the sets."""
        return ", ".join(part.name for part in self.sets)

    @property
    def images(self) -> int:
        """Number of images that were scored."""
        return sum(part.scores.images for part in self.sets)

    def to_dict(self) -> dict[str, Any]:
        """Scores of the sets, ready for JSON."""
        return {
            "scale": self.scale,
            "sets": {part.name: part.to_dict() for part in self.sets},
            "skipped": skipped_rows(self.skipped),
        }

    def save(self, folder: str | Path, **about: str) -> None:
        """Write ``report.json`` (everything) and ``per_image.csv``.

        Raises:
            InputError: the folder cannot be written.
        """
        rows = [
            {"set": part.name, "image": image.image, "psnr": for_json(image.psnr), "ssim": round(image.ssim, 6)}
            for part in self.sets
            for image in part.per_image
        ]
        write_json(folder, {**about, **self.to_dict(), "per_image": rows})
        columns = ("set", "image", "psnr", "ssim")
        write_csv(Path(folder) / "per_image.csv", columns, ([row[name] for name in columns] for row in rows))

    def table(self) -> Table:
        """One row per set, with the protocol."""
        rows = [
            (
                part.name,
                str(part.scores.images),
                f"x{self.scale}",
                f"{part.scores.psnr:.2f}",
                f"{part.scores.ssim:.4f}",
                part.small,
                f"{part.border} px",
            )
            for part in self.sets
        ]
        return ("set", "images", "scale", "PSNR (Y), dB", "SSIM (Y)", "small images", "border left out"), rows

    def summary(self) -> list[str]:
        """Nothing: the table has all figures."""
        return []


class UpscaleEvaluator:
    """Scores models for super-resolution and restoration, set by set; the model's scale determines the protocol."""

    options: ClassVar[Mapping[str, Any]] = {"degradation": None}

    def __init__(
        self,
        predictor: Predictor,
        data: str | Path,
        split: str | None,
        *,
        degradation: Mapping[str, tuple[float, float]] | None,
    ) -> None:
        self.predictor, self.scale = predictor, int(predictor.info.options["scale"])
        training = predictor.info.notes.get("config", {})
        own = degradation is None
        ranges = training.get("degradation", {}) if own else degradation
        self.degradation = checked_ranges(ranges, f"degradation in {predictor.info.ref}" if own else "degradation")
        trained = training.get("splits", ())
        names = [split] if split else _untrained_sets(Path(data), trained if isinstance(trained, list | tuple) else ())
        self.sets = [self._open_set(data, name) for name in names]
        self.parts: Sequence[Part[PictureScore]] = [
            Part(name, samples, partial(self.score, samples)) for name, samples in zip(names, self.sets, strict=True)
        ]

    def _open_set(self, data: str | Path, name: str) -> SuperResolutionData:
        samples = SuperResolutionData.open(data, [name], self.scale, small=not self.degradation)
        if self.scale == 1 and not self.degradation and any(small is None for small, _ in samples.pairs):
            raise ConfigError(
                "scale 1 repairs images, and these have no degraded ones: call foveal.evaluate with what to repair, "
                "for example degradation={'noise': (25, 25)}"
            )
        return samples

    def score(self, samples: SuperResolutionData, index: int, image: str) -> PictureScore:
        """Upscale one small image and compare it with the large one."""
        small, large = samples[index]
        if self.degradation:
            small = degraded(large, self.scale, self.degradation, np.random.default_rng(index))
        return PictureScore(image, *fidelity(self.predictor.upscale(small).image, large, self.scale))

    def summarise(self, scores: list[list[PictureScore]], skipped: dict[str, str]) -> UpscaleEvaluation:
        """Average the scores of each set; sets without a scored image are left out."""
        sets = [
            SetScores(part.name, _average(images), tuple(images), self._describe_small_images(samples), self.scale)
            for part, samples, images in zip(self.parts, self.sets, scores, strict=True)
            if images
        ]
        return UpscaleEvaluation(self.scale, tuple(sets), skipped)

    def save(self, report: UpscaleEvaluation, folder: str | Path, **about: str) -> None:
        """Write the report's files."""
        report.save(folder, **about)

    def _describe_small_images(self, samples: SuperResolutionData) -> str:
        if self.degradation:
            return ", ".join(f"{name} {low:g}..{high:g}" for name, (low, high) in self.degradation.items())
        return "the data set's own" if samples.pairs[0][0] else "bicubic, MATLAB's imresize"


def _untrained_sets(root: Path, trained: Sequence[str]) -> list[str]:
    """Names of the sets that the model was not trained on."""
    folders = sets_of(root, describe(root))
    sets = tuple(folders)
    if not sets:
        raise DataError(f"{root}: no images; give a folder of large images, or one that has a folder for each set")
    same = {name for each in trained for name in next((s for s in SAME_SPLITS if each in s), (each,))}
    used = {folder for name, folder in folders.items() if name in same}
    # "all" of a folder that is drawn from at random has the images of its parts, and they have those of "all".
    overlapping = {name for name, folder in folders.items() if folder in used and (name == ALL or ALL in same)}
    names = [name for name in sets if name not in same | overlapping]
    if not names:
        raise DataError(
            f"{root}: the model was trained on all of its sets ({', '.join(sets)}): add another, or name one with split"
        )
    return names


def _average(images: Sequence[PictureScore]) -> UpscaleScores:
    psnr, ssim = (float(np.mean([getattr(image, key) for image in images])) for key in ("psnr", "ssim"))
    return UpscaleScores(len(images), psnr, ssim)
