"""Folders of images and index masks, as samples for segmentation.

Layout: ``ROOT/<split>/*`` images and ``ROOT/<split>annot/*.png`` masks with the same stems (CamVid's own), with an
optional ``ROOT/dataset.yaml``::

    names: [sky, road, ...]               # one per class id
    palette: [[70, 130, 180], ...]        # optional, one RGB per class
    ignore: [255]                         # ids that are left out

Without that file the labels are CamVid's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..config import build_config, read_yaml
from ..errors import DataError, InputError, nearest
from ..imaging import is_image, read_image, read_mask
from ..info import IGNORE, Labels
from .labels import CAMVID

_CAMVID_VOID = 11


@dataclass(frozen=True)
class _DatasetFile:
    """Keys of dataset.yaml."""

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...] = ()
    ignore: tuple[int, ...] = (IGNORE,)


@dataclass(frozen=True)
class SegmentationData:
    """Pairs of image and mask files with what the ids mean. Indexing reads: ``data[i] -> (image, mask)``.

    Attributes:
        pairs: (image, mask) paths, sorted.
        labels: names and palette.
        ignore: ids of the masks that become 255.
    """

    pairs: tuple[tuple[Path, Path], ...]
    labels: Labels
    ignore: tuple[int, ...] = (IGNORE,)

    @classmethod
    def open(cls, root: str | Path, splits: Sequence[str]) -> SegmentationData:
        """Find the pairs of ``splits`` below ``root``.

        Raises:
            DataError: missing folders, images without masks or the reverse, or nothing at all.
        """
        root = Path(root)
        if not root.is_dir():
            raise DataError(f"{root}: no such folder")
        file = root / "dataset.yaml"
        if file.exists():
            described = build_config(_DatasetFile, read_yaml(file), str(file))
            labels, ignore = Labels(described.names, described.palette), described.ignore
        else:
            labels, ignore = CAMVID, (_CAMVID_VOID, IGNORE)
        if len(labels.names) > IGNORE:
            raise DataError(f"{file}: {len(labels.names)} classes; at most {IGNORE} fit beside the ignored id {IGNORE}")
        pairs = [pair for split in splits for pair in _pairs(root, split)]
        if not pairs:
            raise DataError(f"{root}: no images in {' + '.join(splits)}")
        return cls(tuple(pairs), labels, ignore)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Read one pair: ``(H, W, 3)`` RGB and ``(H, W)`` class ids with 255 = ignore.

        Raises:
            DataError: unreadable, of different sizes, or with ids outside the classes.
        """
        image_path, mask_path = self.pairs[index]
        try:
            image, mask = read_image(image_path), read_mask(mask_path)
        except InputError as error:
            raise DataError(str(error)) from error
        if image.shape[:2] != mask.shape:
            raise DataError(
                f"{mask_path}: mask of {mask.shape[1]}x{mask.shape[0]} (W x H) for an image of "
                f"{image.shape[1]}x{image.shape[0]}"
            )
        return image, self._checked(mask, mask_path)

    def _checked(self, mask: NDArray[np.int32], path: Path) -> NDArray[np.uint8]:
        mask = np.where(np.isin(mask, self.ignore), IGNORE, mask)
        foreign = (mask < 0) | ((mask >= len(self.labels.names)) & (mask != IGNORE))
        if foreign.any():
            ids, counts = np.unique(mask[foreign], return_counts=True)
            found = ", ".join(f"{i} ({n} pixels)" for i, n in list(zip(ids, counts, strict=True))[:5])
            raise DataError(
                f"{path}: id {found}, but there are {len(self.labels.names)} classes; "
                "name it in dataset.yaml, under 'names' or 'ignore'"
            )
        return mask.astype(np.uint8)


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


def _pairs(root: Path, split: str) -> list[tuple[Path, Path]]:
    images, masks = root / split, root / f"{split}annot"
    if not images.is_dir() or not masks.is_dir():
        have = [p.name for p in root.iterdir() if p.is_dir() and (root / f"{p.name}annot").is_dir()]
        raise DataError(f"{root}: no split {split!r} (folders {split}/ and {split}annot/){nearest(split, have)}")
    by_stem: dict[str, Path] = {}
    for path in sorted(images.iterdir()):
        if is_image(path):
            if path.stem in by_stem:
                raise DataError(f"{path}: shares its stem with {by_stem[path.stem].name}; masks are found by stem")
            by_stem[path.stem] = path
    mask_stems = {
        path.stem: path for path in sorted(masks.iterdir()) if is_image(path) and path.suffix.lower() == ".png"
    }
    lonely = sorted(by_stem.keys() ^ mask_stems.keys())
    if lonely:
        raise DataError(
            f"{root}: {len(lonely)} files of {split!r} have no partner, first: {', '.join(lonely[:5])}"
            " (every image needs a mask of the same stem, and the reverse)"
        )
    return [(by_stem[stem], mask_stems[stem]) for stem in sorted(by_stem)]
