"""Scores of a segmentation model on a data set."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data.class_map import abbreviate, read_class_map
from ..data.labelled import Labelled
from ..errors import ConfigError, DataError, InputError
from ..files import atomic_write
from ..info import Labels
from ..prediction.predictor import Predictor
from ..progress import Progress
from .boundary import BoundaryCounts, BoundaryScores, boundary_counts
from .metrics import SegmentScores, class_counts, confusion_matrix, iou_of_counts, mean_of_known, plain, share
from .protocols import PLAIN
from .report import REPORT
from .sheet import Sample


@dataclass(frozen=True)
class ImageScore:
    """One image's part.

    Attributes:
        image: path below the data set's folder, with forward slashes.
        counts: pixels hit, labelled and predicted per class, ``(3, C)`` int64.
        boundary: contours, where they were asked for.
    """

    image: str
    counts: NDArray[np.int64]
    boundary: BoundaryCounts | None = None

    @property
    def iou(self) -> NDArray[np.float64]:
        """Per class; NaN for classes absent from this image's labels."""
        return iou_of_counts(self.counts)

    @property
    def miou(self) -> float:
        """Mean over the classes in this image's labels; NaN without labelled pixels."""
        return float(mean_of_known(self.iou))

    @property
    def pixel_accuracy(self) -> float:
        hits, labelled = self.counts[:2].sum(1)
        return float(share(hits, labelled, labelled > 0))


@dataclass(frozen=True)
class Evaluation:
    """Scores with what they were taken on.

    Attributes:
        scores: per class and overall.
        per_image: every image that was scored, each once, in the data's order.
        split: which part of the data.
        size: (H, W) the images were resized to for the network, ``None``: their own, or the protocol's.
        protocol: "plain" or the published one that was followed.
        skipped: images that could not be scored -> why.
        boundary: scores of the contours, where they were asked for.
    """

    scores: SegmentScores
    per_image: tuple[ImageScore, ...]
    split: str
    size: tuple[int, int] | None
    protocol: str = PLAIN
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    boundary: BoundaryScores | None = None

    @property
    def images(self) -> int:
        """How many images were scored."""
        return len(self.per_image)

    @property
    def miou(self) -> float:
        return self.scores.miou

    def to_dict(self) -> dict:
        """Everything but the images' own scores, ready for JSON."""
        return {
            "split": self.split,
            "protocol": self.protocol,
            "images": self.images,
            "skipped": [{"image": image, "error": error} for image, error in self.skipped.items()],
            "size": list(self.size) if self.size else None,
            **self.scores.to_dict(),
            **({"boundary": self.boundary.to_dict()} if self.boundary else {}),
        }

    def ranked(self) -> list[int]:
        """Indices into ``per_image`` from the best to the worst mIoU, without images that have no labelled pixel."""
        scored = [i for i, image in enumerate(self.per_image) if image.counts[1].any()]
        return sorted(scored, key=lambda i: -self.per_image[i].miou)

    def save(self, folder: str | Path, **about: str) -> None:
        """Write ``report.json`` (all of it, for :func:`foveal.compare`) and ``per_image.csv`` (for spreadsheets).

        Args:
            folder: made if needed.
            about: what to put first in the report, such as the model's reference.

        Raises:
            InputError: the folder cannot be written.
        """
        columns = ("hits", "labelled", "predicted")
        rows = [
            {"image": image.image, **dict(zip(columns, image.counts.tolist(), strict=True))} for image in self.per_image
        ]
        names = list(self.scores.names)
        report = {**about, **self.to_dict(), "names": names, "per_image": rows}
        with atomic_write(Path(folder) / REPORT) as temporary:
            temporary.write_text(json.dumps(report), encoding="utf-8")
        with (
            atomic_write(Path(folder) / "per_image.csv") as temporary,
            temporary.open("w", encoding="utf-8", newline="") as file,
        ):
            table = csv.writer(file)
            extra = ["boundary_f_score"] if self.boundary else []
            table.writerow(["image", "miou", "pixel_accuracy", "labelled_pixels", *extra, *names])
            for image in self.per_image:
                scores = [image.miou, image.pixel_accuracy]
                contours = [float(mean_of_known(image.boundary.f_score))] if image.boundary else []
                cells = ["" if np.isnan(v) else plain(v) for v in (*scores, *contours, *image.iou)]
                table.writerow([image.image, *cells[:2], int(image.counts[1].sum()), *cells[2:]])


def _scored(
    samples: Labelled,
    root: Path,
    predicted: Callable[[NDArray[np.uint8]], NDArray[np.int64]],
    split: str,
    boundary: bool,
    progress: Progress,
) -> tuple[Evaluation, list[int]]:
    """Go through the data once: the evaluation, and which samples its images are."""
    names = samples.labels.names
    matrix = np.zeros((len(names), len(names)), np.int64)
    scores: list[ImageScore] = []
    contours: list[BoundaryCounts] = []
    kept: list[int] = []
    skipped: dict[str, str] = {}
    with progress.bar(f"evaluate {split}", len(samples)) as bar:
        for index in range(len(samples)):
            name = _name(samples.name(index), root)
            try:
                image, target = samples[index]
                mask = predicted(image)
            except (DataError, InputError) as error:
                skipped[name] = str(error)
                progress.note(f"skipped: {error}")
            else:
                confusion = confusion_matrix(target, mask, len(names))
                matrix += confusion
                edges = boundary_counts(target, mask, len(names)) if boundary else None
                contours += [edges] if edges else []
                scores.append(ImageScore(name, class_counts(confusion), edges))
                kept.append(index)
            bar.advance()
    if not scores:
        name, error = next(iter(skipped.items()))
        raise DataError(f"{root}: none of the {len(skipped)} images of {split!r} can be scored; the first: {error}")
    if not matrix.any():
        raise DataError(f"{root}: no labelled pixel in the {len(scores)} masks of {split!r}: nothing to score")
    edges = BoundaryScores.over(contours, names) if boundary else None
    found = Evaluation(SegmentScores(matrix, names), tuple(scores), split, None, skipped=skipped, boundary=edges)
    return found, kept


def _sample(
    title: str,
    score: ImageScore,
    samples: Labelled,
    index: int,
    predicted: Callable[[NDArray[np.uint8]], NDArray[np.int64]],
) -> Sample:
    """Read and predict one image again: which ones the sheet shows is known at the end only."""
    image, target = samples[index]
    return Sample(f"{title}: {score.image}  mIoU {score.miou:.1%}", image, target, predicted(image))


def _lookup(predictor: Predictor, labels: Labels, class_map: str | Path | None) -> NDArray[np.int64]:
    """Data class of each model class, ``(model classes,)``."""
    own = predictor.info.labels.names
    if class_map is None:
        if own and own != labels.names:
            raise ConfigError(
                f"the model predicts {abbreviate(own)}, the data has {abbreviate(labels.names)}: "
                "give a class_map (model class: data class)"
            )
        if predictor.info.num_classes != len(labels.names):
            raise ConfigError(f"the model has {predictor.info.num_classes} classes, the data {len(labels.names)}")
        return np.arange(len(labels.names))
    return read_class_map(class_map, own, labels.names)


def _name(path: Path, root: Path) -> str:
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()
