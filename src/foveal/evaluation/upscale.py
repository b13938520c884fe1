"""Scoring super-resolution and restoration on sets of large images, as the field's tables do.

Small images are made from the large ones by MATLAB's ``imresize`` unless the data set has its own; PSNR and SSIM are
taken on the luma of the rounded picture, without a border of ``scale`` pixels, and averaged over the images of a set.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..data.degradation import degraded
from ..data.layout import describe
from ..data.super_resolution import SuperResolutionData, sets_of
from ..errors import ConfigError, DataError, InputError
from ..files import atomic_write, ensure_folder
from ..prediction.predictor import Predictor
from ..progress import Progress
from .fidelity import UpscaleScores, fidelity, for_json

REPORT = "report.json"


@dataclass(frozen=True)
class PictureScore:
    """One image's part: its path below the data set's folder, PSNR of the luma in dB, SSIM."""

    image: str
    psnr: float
    ssim: float


@dataclass(frozen=True)
class SetScores:
    """One set's figures with the protocol that they were taken by.

    Attributes:
        name: of the set.
        scores: means over its images.
        per_image: in the data's order.
        small: where the small images are from.
        border: pixels left out at each side.
    """

    name: str
    scores: UpscaleScores
    per_image: tuple[PictureScore, ...]
    small: str
    border: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "images": self.scores.images,
            **self.scores.to_dict(),
            "small_images": self.small,
            "border": self.border,
            "channel": "Y of RGB",
        }


@dataclass(frozen=True)
class UpscaleEvaluation:
    """Figures of every set.

    Attributes:
        scale: sides of the large image over those of the small one.
        sets: in the order they were asked for, else by name.
        skipped: images that could not be scored -> why.
    """

    scale: int
    sets: tuple[SetScores, ...]
    skipped: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> UpscaleScores:
        return next(part.scores for part in self.sets if part.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the images' own scores, ready for JSON."""
        return {
            "scale": self.scale,
            "sets": {part.name: part.to_dict() for part in self.sets},
            "skipped": [{"image": image, "error": error} for image, error in self.skipped.items()],
        }

    def save(self, folder: str | Path, **about: str) -> None:
        """Write ``report.json``: all of it, with every image's figures.

        Raises:
            InputError: the folder cannot be written.
        """
        rows = [
            {"set": part.name, "image": image.image, "psnr": for_json(image.psnr), "ssim": round(image.ssim, 6)}
            for part in self.sets
            for image in part.per_image
        ]
        with atomic_write(Path(folder) / REPORT) as temporary:
            temporary.write_text(json.dumps({**about, **self.to_dict(), "per_image": rows}), encoding="utf-8")


def evaluate_upscaling(
    predictor: Predictor,
    data: str | Path,
    *,
    split: str | None = None,
    degradation: Mapping[str, tuple[float, float]] | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> UpscaleEvaluation:
    """Score a predictor of the task "upscale".

    Args:
        predictor: of :func:`foveal.load`; its scale decides the protocol.
        data: folder with large images, or with a folder of them for each set (see
            :mod:`foveal.data.super_resolution`).
        split: one set; default: all but those that the model was trained on.
        degradation: what spoils the small images (see :mod:`foveal.data.degradation`), drawn alike each time; default:
            what the model was trained on.
        out: folder for ``report.json``.
        progress: where to show progress; default: nowhere.

    Raises:
        ConfigError: the model does not upscale, or scale 1 without a degradation.
        DataError: the data cannot be used, or none of its images can.
        InputError: ``out`` cannot be written.
    """
    if predictor.info.task != "upscale":
        raise ConfigError(f"evaluate_upscaling is for models that upscale, this one is for {predictor.info.task!r}")
    root, scale = Path(data), int(predictor.info.options["scale"])
    trained = predictor.info.notes.get("config", {})
    if degradation is None:
        degradation = {name: tuple(ends) for name, ends in trained.get("degradation", {}).items()}
    have = tuple(sets_of(root, describe(root)))
    names = [split] if split else [name for name in have if name not in trained.get("splits", ())]
    if not names:
        raise DataError(f"{root}: no images but those that the model was trained on ({', '.join(have) or 'none'})")
    if out is not None:
        ensure_folder(out)
    sets: list[SetScores] = []
    skipped: dict[str, str] = {}
    for name in names:
        samples = SuperResolutionData.open(root, [name], scale, small=not degradation)
        if scale == 1 and not degradation and any(small is None for small, _ in samples.pairs):
            raise ConfigError("scale 1 repairs images: say what from, such as degradation={'noise': (25, 25)}")
        found = _scored(predictor, samples, name, root, degradation, skipped, progress or Progress(enabled=False))
        if found is not None:
            sets.append(found)
    if not sets:
        name, error = next(iter(skipped.items()))
        raise DataError(f"{root}: none of the {len(skipped)} images can be scored; the first: {error}")
    evaluation = UpscaleEvaluation(scale, tuple(sets), skipped)
    if out is not None:
        evaluation.save(out, model=predictor.info.ref, data=str(data))
    return evaluation


def _scored(
    predictor: Predictor,
    samples: SuperResolutionData,
    name: str,
    root: Path,
    degradation: Mapping[str, tuple[float, float]],
    skipped: dict[str, str],
    progress: Progress,
) -> SetScores | None:
    scale = samples.scale
    scores: list[PictureScore] = []
    with progress.bar(f"evaluate {name}", len(samples)) as bar:
        for index, (_, path) in enumerate(samples.pairs):
            image = (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()
            try:
                small, large = samples[index]
                if degradation:
                    small = degraded(large, scale, degradation, np.random.default_rng(index))
                scores.append(PictureScore(image, *fidelity(predictor.upscale(small).image, large, scale)))
            except (DataError, InputError) as error:
                skipped[image] = str(error)
                progress.note(f"skipped: {error}")
            bar.advance()
    if not scores:
        return None
    means = (float(np.mean([getattr(score, key) for score in scores])) for key in ("psnr", "ssim"))
    made = "the data set's own" if samples.pairs[0][0] else "bicubic, MATLAB's imresize"
    if degradation:
        made = ", ".join(f"{what} {low:g}..{high:g}" for what, (low, high) in degradation.items())
    return SetScores(name, UpscaleScores(len(scores), *means), tuple(scores), made, scale)
