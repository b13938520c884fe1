"""Open labelled images for training and evaluation, from folders or from tar files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self

import numpy as np

from ..images.bands import Bands
from ..info import Labels
from . import stream
from .classification import ClassificationData, class_folders
from .layout import DatasetFile, describe
from .segmentation import SegmentationData
from .segmentation_layouts import layout_of
from .shards import find_shards, is_pattern
from .tar_samples import TarSamples

LabelledTask = Literal["segment", "classify"]  # tasks whose images are labelled with masks or with classes


class Labelled(Protocol):
    """Samples by index: ``data[i] -> (image, target)``.

    The image is ``(H, W, C)``, the target class ids ``(H, W)`` or a class index.
    """

    @property
    def labels(self) -> Labels:
        """Names and palette of the classes."""
        ...

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> tuple[Any, Any]: ...

    def name(self, index: int) -> Path:
        """Path of a sample, for messages and reports."""
        ...

    def order(self, rng: np.random.Generator, buffer: int) -> Sequence[int]:
        """All indices in random order; data read front to back is shuffled within a window of ``buffer`` samples."""
        ...


class Banded(Labelled, Protocol):
    """Samples with masks or classes, whose images may have other bands than RGB."""

    @property
    def bands(self) -> Bands:
        """What the images are read as."""
        ...

    def with_bands(self, bands: Bands, /) -> Self:
        """The same samples, whose images are read with these bands."""
        ...


def open_labelled(data: str | Path, splits: Sequence[str], task: LabelledTask) -> Banded:
    """Find the labelled samples of some splits.

    Args:
        data: folder of a data set, or a pattern of tar files (see :func:`~foveal.data.shards.find_shards`).
        splits: names of the splits; their samples are joined.
        task: "segment" for samples with masks, "classify" for samples with a class index.

    Raises:
        DataError: the data set cannot be used.
        ConfigError: ``dataset.yaml`` has unknown keys or values.
    """
    folders = _FOLDERS[task]
    if _is_in_tars(data, folders):
        return TarSamples.open(data, splits, task)
    return folders.open(data, splits)


class _Folders(NamedTuple):
    """How the data of a task is stored in folders."""

    open: Callable[[str | Path, Sequence[str]], Banded]
    fit: Callable[[Path, DatasetFile], bool]  # whether a data set has such folders


def _has_masks(root: Path, described: DatasetFile) -> bool:
    return layout_of(root, described) is not None


def _has_class_folders(root: Path, described: DatasetFile) -> bool:
    return any(class_folders(root, described).values())


_FOLDERS = {
    "segment": _Folders(SegmentationData.open, _has_masks),
    "classify": _Folders(ClassificationData.open, _has_class_folders),
}


def _is_in_tars(data: str | Path, folders: _Folders) -> bool:
    """Whether to read tar files: not next to folders of images, which may have been extracted from them."""
    if is_pattern(data):
        return True
    root = Path(data)
    described = describe(root)
    if described.layout:
        return described.layout == stream.LAYOUT
    return bool(find_shards(root)[2]) and not folders.fit(root, described)
