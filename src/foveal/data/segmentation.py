"""Images with class masks, as samples for segmentation, however they are laid out.

Layouts are told apart by their folders, or named in ``dataset.yaml`` (docs/data.md shows a tree of each):
CamVid, Cityscapes, ADE20K, COCO's panoptic and instance annotations, and the usual folders of images and masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, InputError
from ..images.reading import read_image
from ..info import Labels
from .layout import describe, raise_first, resolve_split
from .masks import MaskReader
from .segmentation_layouts import layout_of, unknown_layout


@dataclass(frozen=True)
class SegmentationData:
    """Pairs of image and mask files with what the ids mean. Indexing reads: ``data[i] -> (image, mask)``.

    Attributes:
        pairs: (image, mask) paths, sorted; the file of all annotations where there is one for many images.
        labels: names and palette.
        read_mask: reads the classes of one pair.
        layout: name of the layout.
    """

    pairs: tuple[tuple[Path, Path], ...]
    labels: Labels
    read_mask: MaskReader
    layout: str = ""

    @classmethod
    def open(cls, root: str | Path, splits: Sequence[str]) -> SegmentationData:
        """Find the pairs of ``splits`` below ``root``.

        Raises:
            DataError: no layout fits, no such split, images without masks or the reverse, or nothing at all.
            ConfigError: ``dataset.yaml`` has unknown keys or values.
        """
        root = Path(root)
        described = describe(root)
        layout = layout_of(root, described)
        if layout is None:
            raise unknown_layout(root, described)
        have = layout.splits(root, described)
        part = layout.open(root, [resolve_split(split, have, root) for split in splits], described)
        raise_first(part.problems, root)
        if not part.pairs:
            raise DataError(f"{root}: no images in {' + '.join(splits)}")
        return cls(part.pairs, part.labels, part.read, layout.name)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Read one pair: ``(H, W, 3)`` RGB and ``(H, W)`` class ids with 255 = ignore.

        Raises:
            DataError: unreadable, of different sizes, or with ids outside the classes.
        """
        image_path, mask_path = self.pairs[index]
        try:
            image = read_image(image_path)
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
        """All pairs in random order; single files need no ``buffer``."""
        return rng.permutation(len(self)).tolist()


def class_counts(masks: Sequence[NDArray[np.uint8]], num_classes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pixels per class, and pixels of all masks in which the class occurs: what frequency balancing needs."""
    pixels = np.zeros(num_classes, np.int64)
    present = np.zeros(num_classes, np.int64)
    for mask in masks:
        counts = np.bincount(mask.ravel(), minlength=256)[:num_classes]
        pixels += counts
        present += np.where(counts > 0, mask.size, 0)
    return pixels, present


def median_frequency_weights(pixels: NDArray[np.int64], present: NDArray[np.int64]) -> NDArray[np.float64]:
    """Median-frequency balancing (Eigen and Fergus, arXiv 1411.4734): median frequency over frequency; absent: 0."""
    frequency = np.divide(pixels, present, out=np.zeros(len(pixels)), where=present > 0)
    seen = frequency > 0
    if not seen.any():
        raise DataError("no labelled pixels in the training masks")
    weights = np.zeros(len(pixels))
    weights[seen] = np.median(frequency[seen]) / frequency[seen]
    return weights
