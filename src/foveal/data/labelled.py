"""Open labelled images for training and evaluation, from folders or from tar files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self

import numpy as np

from ..errors import DataError
from ..images.bands import Bands
from ..info import Labels
from . import stream
from .classification import ClassificationData, class_folders
from .layout import DatasetFile, describe
from .regression import RegressionData
from .segmentation import SegmentationData
from .segmentation_layouts import layout_of
from .shards import find_shards, is_pattern
from .tar_samples import TarSamples

LabelledTask = Literal["segment", "classify", "regress"]  # tasks whose images have masks, classes or maps of values


class Labelled(Protocol):
    """Samples by index: ``data[i] -> (image, target)``.

    The image is ``(H, W, C)``, the target class ids ``(H, W)``, a class index, or values ``(H, W, channels)``.
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
    """Samples with masks, classes or values, whose images may have other bands than RGB."""

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
        task: "segment" for samples with masks, "classify" for samples with a class index, "regress" for maps of values.

    Raises:
        DataError: the data set cannot be used.
        ConfigError: ``dataset.yaml`` has unknown keys or values.
    """
    folders = _FOLDERS[task]
    if folders.fit is None and is_pattern(data):
        raise DataError(f"{data}: tar files hold no maps of values: give the folder of a data set")
    if folders.fit is not None and _is_in_tars(data, folders.fit):
        return TarSamples.open(data, splits, task)
    return folders.open(data, splits)


class _Folders(NamedTuple):
    """How the data of a task is stored in folders."""

    open: Callable[[str | Path, Sequence[str]], Banded]
    fit: Callable[[Path, DatasetFile], bool] | None  # whether a data set has such folders; None: tar files hold none


def _has_masks(root: Path, described: DatasetFile) -> bool:
    return layout_of(root, described) is not None


def _has_class_folders(root: Path, described: DatasetFile) -> bool:
    return any(class_folders(root, described).values())


_FOLDERS = {
    "segment": _Folders(SegmentationData.open, _has_masks),
    "classify": _Folders(ClassificationData.open, _has_class_folders),
    "regress": _Folders(RegressionData.open, None),
}


def _is_in_tars(data: str | Path, fit: Callable[[Path, DatasetFile], bool]) -> bool:
    """Whether to read tar files: not next to folders of images, which may have been extracted from them."""
    if is_pattern(data):
        return True
    root = Path(data)
    described = describe(root)
    if described.layout:
        return described.layout == stream.LAYOUT
    return bool(find_shards(root)[2]) and not fit(root, described)
