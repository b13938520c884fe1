"""Scores of segmentation models."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..data.class_map import MANY_ABSENT, abbreviate, read_class_map
from ..data.labelled import open_labelled
from ..data.recognition import default_split
from ..errors import ConfigError, DataError
from ..images.writing import save_picture
from ..info import Labels
from ..prediction.options import check_scales
from ..prediction.predictor import Predictor
from .boundary import BoundaryCounts, BoundaryScores, boundary_counts
from .metrics import SegmentScores, class_counts, confusion_matrix, iou_of_counts, json_number, mean_of_known, share
from .protocols import PLAIN, find_protocol
from .report import REPORT, Part, Table, skipped_rows, write_csv, write_json
from .sheet import Sample, sample_sheet

_SHEET = "samples.png"


@dataclass(frozen=True)
class ImageScore:
    """Scores of one image.

    Attributes:
        image: path below the data set's folder, with forward slashes.
        counts: correct, labelled and predicted pixels per class, ``(3, C)`` int64.
        boundary: scores of the contours, if they were requested.
    """

    image: str
    counts: NDArray[np.int64]
    boundary: BoundaryCounts | None = None

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union per class; NaN for classes that are absent from this image's label."""
        return iou_of_counts(self.counts)

    @property
    def miou(self) -> float:
        """Mean over the classes in this image's label; NaN without labelled pixels."""
        return float(mean_of_known(self.iou))

    @property
    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels that have the right class; NaN without labelled pixels."""
        hits, labelled = self.counts[:2].sum(1)
        return float(share(hits, labelled, labelled > 0))


@dataclass(frozen=True)
class Evaluation:
    """Report of a segmentation model.

    Attributes:
        scores: scores per class and over the whole data set.
        per_image: scores of every image that was scored, in the data's order.
        split: the split that was scored.
        size: (H, W) that images were resized to for the network; ``None``: their own size, or the protocol's.
        protocol: "plain", or the published protocol that was followed.
        skipped: images that could not be scored, each with the reason.
        boundary: scores of the contours, if they were requested.
        views: tiles and test-time augmentation, by the names of the options; empty: whole images, once.
    """

    scores: SegmentScores
    per_image: tuple[ImageScore, ...]
    split: str
    size: tuple[int, int] | None
    protocol: str = PLAIN
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    boundary: BoundaryScores | None = None
    views: dict[str, Any] = dataclasses.field(default_factory=dict)
    files: ClassVar[tuple[str, ...]] = (REPORT, "per_image.csv", _SHEET)

    @property
    def images(self) -> int:
        """Number of images that were scored."""
        return len(self.per_image)

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur in the data."""
        return self.scores.miou

    def to_dict(self) -> dict[str, Any]:
        """Scores of the whole data set, ready for JSON."""
        return {
            "split": self.split,
            "protocol": self.protocol,
            "images": self.images,
            "skipped": skipped_rows(self.skipped),
            "size": list(self.size) if self.size else None,
            **self.views,
            **self.scores.to_dict(),
            **({"boundary": self.boundary.to_dict()} if self.boundary else {}),
        }

    def ranked(self) -> list[int]:
        """Indices into ``per_image`` from the best to the worst mIoU, without images that have no labelled pixel."""
        scored = [i for i, image in enumerate(self.per_image) if image.counts[1].any()]
        return sorted(scored, key=lambda i: -self.per_image[i].miou)

    def save(self, folder: str | Path, **about: str) -> None:
        """Write ``report.json`` (everything, for :func:`foveal.compare`) and ``per_image.csv`` (for spreadsheets).

        Args:
            folder: created if it does not exist.
            about: what comes first in the report, for example the model's reference.

        Raises:
            InputError: the folder cannot be written.
        """
        columns = ("hits", "labelled", "predicted")
        rows = [
            {"image": image.image, **dict(zip(columns, image.counts.tolist(), strict=True))} for image in self.per_image
        ]
        names = list(self.scores.names)
        write_json(folder, {**about, **self.to_dict(), "names": names, "per_image": rows})
        extra = ["boundary_f_score"] if self.boundary else []
        header = ["image", "miou", "pixel_accuracy", "labelled_pixels", *extra, *names]
        write_csv(Path(folder) / "per_image.csv", header, map(_csv_row, self.per_image))

    def table(self) -> Table:
        """One row per class; without the absent ones if they are many."""
        left_out = self.scores.absent if len(self.scores.absent) > MANY_ABSENT else ()
        report = self.scores.to_dict()
        columns = {"IoU": report["iou"], "accuracy": report["accuracy"]}
        if self.boundary:
            contours = self.boundary.to_dict()
            columns |= {"boundary F": contours["f_score"], "boundary IoU": contours["boundary_iou"]}
        rows = [
            (name, *("-" if column[name] is None else f"{column[name]:.2%}" for column in columns.values()))
            for name in self.scores.names
            if name not in left_out
        ]
        return ("class", *columns), rows

    def summary(self) -> list[str]:
        """Means over the classes, and the classes without a pixel in the labels."""
        scores = self.scores
        where = f"{self.images} images of {self.split}"
        where += f" at {self.size[0]}x{self.size[1]}" if self.size else ""
        where += "".join(f", {name} {_in_words(value)}".rstrip() for name, value in self.views.items())
        where += f", protocol {self.protocol}" if self.protocol != PLAIN else ""
        lines = [
            f"mIoU {scores.miou:.2%}  pixel accuracy {scores.pixel_accuracy:.2%}  "
            f"mean accuracy {scores.mean_accuracy:.2%}  ({where})"
        ]
        if self.boundary:
            lines.append(
                f"mean boundary F {self.boundary.mean_f_score:.2%}  mean boundary IoU {self.boundary.miou:.2%}"
            )
        if len(scores.absent) > MANY_ABSENT:
            count = f"{len(scores.absent)} of {len(scores.names)} classes"
            lines.append(f"absent from the data, left out of the table and the means: {count}")
        elif scores.absent:
            lines.append(f"absent from the data, left out of the means: {', '.join(scores.absent)}")
        return lines


class SegmentEvaluator:
    """Scores segmentation models, with one confusion matrix over the data set.

    By default, images are seen whole, at one scale, without their mirror image.
    """

    options: ClassVar[Mapping[str, Any]] = {
        "size": None,
        "class_map": None,
        "protocol": PLAIN,
        "boundary": False,
        "tile": None,
        "overlap": None,
        "flip": False,
        "scales": (1.0,),
    }

    def __init__(
        self,
        predictor: Predictor,
        data: str | Path,
        split: str | None,
        *,
        size: tuple[int, int] | None,
        class_map: str | Path | None,
        protocol: str,
        boundary: bool,
        tile: int | None,
        overlap: int | None,
        flip: bool,
        scales: Sequence[float],
    ) -> None:
        published = find_protocol(protocol)
        self.views = _views(tile, overlap, flip, scales)
        if published and self.views:
            raise ConfigError(f"protocol {protocol!r} sees whole images once: leave {next(iter(self.views))} out")
        if published and size:
            raise ConfigError(f"protocol {protocol!r} sets the network's input size itself: leave size out")
        if size and tile is not None:
            raise ConfigError("tiles see images at their full size: leave size or tile out")
        split = split or (published.split if published else default_split(data, "segment"))
        self.samples = open_labelled(data, [split], "segment").with_bands(predictor.bands)
        self.labels = self.samples.labels
        if published:
            published.check(self.labels)
            predictor = published.prepare_predictor(predictor)
        elif size:
            predictor = _resize_input(predictor, size)
        predictor.check_tiles(tile, overlap)
        self.predictor, self.published, self.protocol = predictor, published, protocol
        self.data, self.size, self.boundary = data, size, boundary
        self.data_class = _data_classes(predictor, self.labels, class_map)
        self.confusion = np.zeros((len(self.labels.names),) * 2, np.int64)
        self.index_of: dict[str, int] = {}
        self.parts: Sequence[Part[ImageScore]] = (Part(split, self.samples, self.score),)

    def score(self, index: int, image: str) -> ImageScore:
        """Score one image and add its pixels to the confusion matrix."""
        pixels, target = self.samples[index]
        mask, classes = self.predict(pixels), len(self.labels.names)
        confusion = confusion_matrix(target, mask, classes)
        contours = boundary_counts(target, mask, classes) if self.boundary else None
        self.confusion += confusion
        self.index_of[image] = index
        return ImageScore(image, class_counts(confusion), contours)

    def predict(self, image: NDArray[Any]) -> NDArray[np.int64]:
        """The data's class of every pixel, ``(H, W)``, of an ``(H, W, C)`` image."""
        if self.published:
            return self.data_class[self.published.mask(self.predictor, image)]
        return self.data_class[self.predictor.segment(image, **self.views).mask]

    def summarise(self, scores: list[list[ImageScore]], skipped: dict[str, str]) -> Evaluation:
        """Compute the scores of the data set.

        Raises:
            DataError: no mask has a labelled pixel.
        """
        per_image, split, names = scores[0], self.parts[0].name, self.labels.names
        if not self.confusion.any():
            raise DataError(
                f"{self.data}: no labelled pixel in the {len(per_image)} masks of {split!r}: nothing to score"
            )
        contours = [image.boundary for image in per_image if image.boundary]
        return Evaluation(
            SegmentScores(self.confusion, names),
            tuple(per_image),
            split,
            self.size,
            self.protocol,
            skipped,
            BoundaryScores.gather(contours, names) if contours else None,
            self.views,
        )

    def save(self, report: Evaluation, folder: str | Path, **about: str) -> None:
        """Write the report's files, and ``samples.png`` with the best, the median and the worst image."""
        report.save(folder, **about)
        ranked = report.ranked()
        examples = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
        rows = [self._sample(title, report.per_image[i]) for title, i in examples.items()]
        save_picture(sample_sheet(rows, self.labels), Path(folder) / _SHEET)

    def _sample(self, title: str, score: ImageScore) -> Sample:
        """Read and predict an image again: only the ranking of all images shows which ones the sheet needs."""
        image, target = self.samples[self.index_of[score.image]]
        return Sample(f"{title}: {score.image}  mIoU {score.miou:.1%}", image, target, self.predict(image))


def _views(tile: int | None, overlap: int | None, flip: bool, scales: Sequence[float]) -> dict[str, Any]:
    """The options of :meth:`Predictor.segment` that are not the default.

    Raises:
        ConfigError: scales that cannot be used.
    """
    given = {"tile": tile, "overlap": overlap, "flip": flip or None, "scales": list(check_scales(scales))}
    return {name: value for name, value in given.items() if value not in (None, [1.0])}


def _in_words(value: Any) -> str:
    return "" if value is True else ",".join(f"{each:g}" for each in np.atleast_1d(value))


def _csv_row(image: ImageScore) -> list[Any]:
    contours = [float(mean_of_known(image.boundary.f_score))] if image.boundary else []
    cells = [json_number(value) for value in (image.miou, image.pixel_accuracy, *contours, *image.iou)]
    return [image.image, *cells[:2], int(image.counts[1].sum()), *cells[2:]]


def _resize_input(predictor: Predictor, size: tuple[int, int]) -> Predictor:
    """The predictor with images resized to ``size`` (H, W) before the network."""
    preprocess = dataclasses.replace(predictor.info.preprocess, size=size, crop_ratio=0.0)
    return Predictor(predictor.runner, predictor.info.replace(preprocess=preprocess), predictor.runtime)


def _data_classes(predictor: Predictor, labels: Labels, class_map: str | Path | None) -> NDArray[np.int64]:
    """Index of the data's class for each class of the model, ``(model classes,)``."""
    own, count = predictor.info.labels.names, len(labels.names)
    if class_map is not None:
        return read_class_map(class_map, own, labels.names)
    if own and own != labels.names:
        raise ConfigError(
            f"the model predicts {abbreviate(own)}, the data has {abbreviate(labels.names)}: "
            "give a class_map (model class: data class)"
        )
    if predictor.info.num_classes != count:
        raise ConfigError(
            f"the model has {predictor.info.num_classes} classes, the data {count}: give a model of the data's classes"
        )
    return np.arange(count)
