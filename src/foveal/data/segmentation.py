"""Samples for segmentation: images with class masks, in any of the known layouts.

The layout is detected from the folders, or named in ``dataset.yaml`` (docs/data.md shows a tree of each): CamVid,
Cityscapes, ADE20K, Pascal VOC, COCO's panoptic and instance annotations, outlines of YOLO and labelme, and the usual
folders of images and masks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, InputError
from ..images.bands import RGB, Bands
from ..info import Labels
from .layout import describe, raise_first, resolve_split
from .masks import MaskReader
from .segmentation_layouts import layout_of, unknown_layout


@dataclass(frozen=True)
class SegmentationData:
    """Pairs of image and mask files. Indexing reads: ``data[i] -> (image, mask)``.

    Attributes:
        pairs: (image, mask) paths, sorted; the mask is a file of annotations if one file covers many images.
        labels: names and palette of the classes.
        read_mask: reads the class ids of one pair.
        layout: name of the layout.
        notes: what is left out, for users.
        bands: number of bands and type of values as which the images are read.
    """

    pairs: tuple[tuple[Path, Path], ...]
    labels: Labels
    read_mask: MaskReader
    layout: str = ""
    notes: tuple[str, ...] = ()
    bands: Bands = RGB

    @classmethod
    def open(cls, root: str | Path, splits: Sequence[str]) -> SegmentationData:
        """Find the pairs of ``splits`` below ``root``.

        Raises:
            DataError: no layout fits or several do, a split does not exist or is empty, or files have no partner.
            ConfigError: ``dataset.yaml`` has unknown keys or values.
        """
        root = Path(root)
        described = describe(root)
        layout = layout_of(root, described)
        if layout is None:
            raise unknown_layout(root, described)
        names = layout.splits(root, described)
        part = layout.open(root, [resolve_split(split, names, root) for split in splits], described)
        raise_first(part.problems, root)
        if not part.pairs:
            raise DataError(f"{root}: no images in {' + '.join(splits)}")
        return cls(part.pairs, part.labels, part.read, layout.name, part.notes)

    def with_bands(self, bands: Bands) -> SegmentationData:
        """The same samples, whose images are read with these bands."""
        return dataclasses.replace(self, bands=bands)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[NDArray[Any], NDArray[np.unsignedinteger]]:
        """Read one pair: the image ``(H, W, C)`` and class ids ``(H, W)`` with 255 = ignore.

        Raises:
            DataError: a file is unreadable, image and mask have different sizes, or the mask has unknown ids.
        """
        image_path, mask_path = self.pairs[index]
        try:
            image = self.bands.read(image_path)
        except InputError as error:
            raise DataError(str(error)) from error
        mask = self.read_mask(image_path, mask_path)
        if image.shape[:2] != mask.shape:
            raise DataError(
                f"{mask_path}: mask of {mask.shape[1]}x{mask.shape[0]} (W x H) for the image {image_path.name} of "
                f"{image.shape[1]}x{image.shape[0]}"
            )
        return image, mask

    def name(self, index: int) -> Path:
        """The image file of a pair."""
        return self.pairs[index][0]

    def order(self, rng: np.random.Generator, buffer: int) -> Sequence[int]:
        """All indices in random order; ``buffer`` is not used for single files."""
        return rng.permutation(len(self)).tolist()


def class_counts(
    masks: Sequence[NDArray[np.unsignedinteger]], num_classes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count what frequency balancing needs: the pixels of each class, and all pixels of the masks that contain it.

    Args:
        masks: class ids ``(H, W)`` each, 255 = ignore.
        num_classes: number of classes.

    Returns:
        Two arrays ``(num_classes,)``.
    """
    pixels = np.zeros(num_classes, np.int64)
    present = np.zeros(num_classes, np.int64)
    for mask in masks:
        counts = np.bincount(mask.ravel(), minlength=num_classes)[:num_classes]
        pixels += counts
        present += np.where(counts > 0, mask.size, 0)
    return pixels, present


def median_frequency_weights(pixels: NDArray[np.int64], present: NDArray[np.int64]) -> NDArray[np.float64]:
    """Class weights by median-frequency balancing: the median of all frequencies over the frequency of the class.

    Source: Eigen and Fergus, arXiv 1411.4734.

    Args:
        pixels: first result of :func:`class_counts`.
        present: its second result.

    Returns:
        ``(num_classes,)``; 0 for classes that do not occur.

    Raises:
        DataError: no class occurs.
    """
    frequency = np.divide(pixels, present, out=np.zeros(len(pixels)), where=present > 0)
    occurs = frequency > 0
    if not occurs.any():
        raise DataError("no labelled pixels in the training masks; check them with 'foveal data check'")
    weights = np.zeros(len(pixels))
    weights[occurs] = np.median(frequency[occurs]) / frequency[occurs]
    return weights
