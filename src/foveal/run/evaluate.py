"""Scoring a model, live or exported, on a labelled data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..config import read_yaml
from ..data.segmentation import SegmentationData
from ..errors import ConfigError, nearest
from ..info import Labels
from .load import load
from .metrics import SegmentScores, confusion_matrix
from .predict import Predictor
from .progress import Progress


@dataclass(frozen=True)
class Evaluation:
    """Scores with what they were taken on.

    Attributes:
        scores: per class and overall.
        images: how many images, each counted once.
        split: which part of the data.
        size: (H, W) the images were resized to for the network, ``None``: their own.
    """

    scores: SegmentScores
    images: int
    split: str
    size: tuple[int, int] | None

    @property
    def miou(self) -> float:
        return self.scores.miou

    def to_dict(self) -> dict:
        size = list(self.size) if self.size else None
        return {"split": self.split, "images": self.images, "size": size, **self.scores.to_dict()}


def evaluate(
    ref: str | Path | Predictor,
    data: str | Path,
    *,
    split: str = "test",
    size: tuple[int, int] | None = None,
    class_map: str | Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score segmentation on a data set: whole images, one scale, no flip, one confusion matrix.

    Args:
        ref: whatever :func:`foveal.load` takes, or a predictor.
        data: folder of the data set (see :mod:`foveal.data.segmentation`).
        split: part of it.
        size: (H, W) to resize images to before the network; its logits are resized straight to the label's size.
        class_map: YAML file ``model class: data class`` for a model with other classes; the argmax comes first.
        progress: where to show progress; default: nowhere.

    Raises:
        ConfigError: the model's classes are not the data's and no map is given, or the map does not fit.
        DataError: the data cannot be used.
    """
    predictor = ref if isinstance(ref, Predictor) else load(ref)
    if predictor.info.task != "segment":
        raise ConfigError(f"{ref}: evaluation is for segmentation models, this one is for {predictor.info.task!r}")
    if size is not None:
        preprocess = predictor.info.preprocess
        changed = dataclasses.replace(preprocess, size=size, crop_ratio=0.0)
        predictor = Predictor(predictor.runner, predictor.info.replace(preprocess=changed), predictor.runtime)
    samples = SegmentationData.open(data, [split])
    lookup = _lookup(predictor, samples.labels, class_map)
    classes = len(samples.labels.names)
    matrix = np.zeros((classes, classes), np.int64)
    with (progress or Progress(enabled=False)).bar(f"evaluate {split}", len(samples)) as bar:
        for index in range(len(samples)):
            image, target = samples[index]
            matrix += confusion_matrix(target, lookup[predictor.segment(image).mask], classes)
            bar.advance()
    return Evaluation(SegmentScores(matrix, samples.labels.names), len(samples), split, size)


def _lookup(predictor: Predictor, labels: Labels, class_map: str | Path | None) -> NDArray[np.int64]:
    """Data class of each model class, ``(model classes,)``."""
    own = predictor.info.labels.names
    if class_map is None:
        if own and own != labels.names:
            raise ConfigError(
                f"the model predicts {_few(own)}, the data has {_few(labels.names)}: "
                "give a class_map (model class: data class)"
            )
        if predictor.info.num_classes != len(labels.names):
            raise ConfigError(f"the model has {predictor.info.num_classes} classes, the data {len(labels.names)}")
        return np.arange(len(labels.names))
    mapping = read_yaml(class_map)
    for name, target in mapping.items():
        if name not in own:
            raise ConfigError(f"{class_map}: the model has no class {name!r}{nearest(name, own)}")
        if target not in labels.names:
            raise ConfigError(f"{class_map}: the data has no class {target!r}{nearest(str(target), labels.names)}")
    missing = [name for name in own if name not in mapping]
    if missing:
        raise ConfigError(f"{class_map}: no data class for {_few(missing)}")
    return np.array([labels.names.index(mapping[name]) for name in own])


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f", ... ({len(names)})" if len(names) > 4 else "")
