"""Images with labels for training, whatever holds them: folders or tar files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from ..info import Labels
from . import stream
from .classification import ClassificationData, class_folders
from .layout import describe
from .segmentation import SegmentationData
from .segmentation_layouts import layout_of
from .shards import find_shards, is_pattern
from .tar_samples import TarSamples

Task = Literal["segment", "classify"]


class Labelled(Protocol):
    """Samples by number: ``data[i] -> (image, target)``, ``(H, W, 3)`` RGB with class ids ``(H, W)`` or a class."""

    @property
    def labels(self) -> Labels:
        """Names and palette of the classes."""
        ...

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> tuple[Any, Any]: ...

    def name(self, index: int) -> Path:
        """What people find a sample by."""
        ...

    def order(self, rng: np.random.Generator, buffer: int) -> Sequence[int]:
        """All samples in random order, of which those that are read front to back draw from the next ``buffer``."""
        ...


def open_labelled(data: str | Path, splits: Sequence[str], task: Task) -> Labelled:
    """Find the samples of ``splits``.

    Args:
        data: folder of a data set, or a pattern of tar files (see :func:`~foveal.data.shards.find_shards`).
        splits: together one set of samples.
        task: "segment" for masks, "classify" for a class per image.

    Raises:
        DataError: the data set cannot be used.
        ConfigError: ``dataset.yaml`` has unknown keys or values.
    """
    if _in_tars(data, task):
        return TarSamples.open(data, splits, task)
    return SegmentationData.open(data, splits) if task == "segment" else ClassificationData.open(data, splits)


def _in_tars(data: str | Path, task: Task) -> bool:
    """Whether tar files are all there is: beside folders of images they may be what those came in."""
    if is_pattern(data):
        return True
    root = Path(data)
    described = describe(root)
    if described.layout:
        return described.layout == stream.LAYOUT
    if not find_shards(root)[2]:
        return False
    return layout_of(root, described) is None if task == "segment" else not any(class_folders(root, described).values())
