"""Samples for classification: images in one folder per class.

Layouts (detected from where the images are)::

    ROOT/<split>/<class>/*.jpg      a folder per split
    ROOT/<class>/*.jpg              no splits: "all", and "train" and "val" with val_share in dataset.yaml
    ROOT/*_n01440764_*.jpg          no folders: the name of every file contains its class as a WordNet id; no splits

Classes are numbered in the order of their folder names, or of ``names`` in ``dataset.yaml``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError, InputError
from ..images.bands import RGB, Bands
from ..images.folders import has_images
from ..info import Labels
from .layout import (
    FILE,
    IMAGE_FOLDERS,
    MASK_FOLDERS,
    SPLIT_NAMES,
    DatasetFile,
    UnknownLayoutError,
    describe,
    draw_splits,
    images_in,
    resolve_split,
    subfolders,
)

LAYOUT = "classes"
_WORDNET_ID = re.compile(r"(?<![a-zA-Z0-9])n\d{8}(?!\d)")


@dataclass(frozen=True)
class ClassificationData:
    """Image files with their classes. Indexing reads: ``data[i] -> (image, class index)``.

    Attributes:
        files: (image path, class index), sorted by class, then by name.
        labels: names of the classes, the same for every split.
        bands: number of bands and type of values as which the images are read.
    """

    files: tuple[tuple[Path, int], ...]
    labels: Labels
    bands: Bands = RGB

    @classmethod
    def open(cls, root: str | Path, splits: Sequence[str]) -> ClassificationData:
        """Find the images of ``splits`` below ``root``.

        Raises:
            DataError: the folder or a split does not exist or has no images, a class folder contains masks or further
                folders of images, or the class folders are not those of ``dataset.yaml``.
        """
        root = Path(root)
        described = describe(root)
        if described.layout not in ("", LAYOUT):
            raise DataError(
                f"{root / FILE}: layout {described.layout!r} is not for classification; write"
                f" 'layout: {LAYOUT}', or leave 'layout' out"
            )
        by_split = class_folders(root, described)
        if not by_split:
            raise UnknownLayoutError(f"{root}: no folders of images, one per class (ROOT/<split>/<class>/*.jpg)")
        names = _class_names(root, described, {name for folders in by_split.values() for name in folders})
        files: list[tuple[Path, int]] = []
        for split in splits:
            folders = by_split[resolve_split(split, tuple(by_split), root)]
            files += [(path, index) for index, name in enumerate(names) for path in folders.get(name, ())]
        if not files:
            raise DataError(f"{root}: no images in {' + '.join(splits)}")
        return cls(tuple(files), Labels(names, described.palette))

    def with_bands(self, bands: Bands) -> ClassificationData:
        """The same samples, whose images are read with these bands."""
        return dataclasses.replace(self, bands=bands)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[NDArray[Any], int]:
        """Read one image, ``(H, W, C)``, and its class.

        Raises:
            DataError: the image is unreadable.
        """
        path, label = self.files[index]
        try:
            return self.bands.read(path), label
        except InputError as error:
            raise DataError(str(error)) from error

    def name(self, index: int) -> Path:
        """The file of an image."""
        return self.files[index][0]

    def order(self, rng: np.random.Generator, buffer: int) -> Sequence[int]:
        """All indices in random order; ``buffer`` is not used for single files."""
        return rng.permutation(len(self)).tolist()


def class_folders(root: Path, described: DatasetFile) -> dict[str, dict[str, list[Path]]]:
    """Images by split and class name; empty if ``root`` has no folders of classes.

    Raises:
        DataError: a folder looks like a class by its place, but like masks or a nested data set by its content.
    """
    flat = [folder for folder in subfolders(root) if images_in(folder)]
    classes = _class_files(root, root, flat, described) if flat else _by_wordnet_id(root, described)
    if classes:
        return _draw_by_class(classes, described)
    by_split = {split.name: [f for f in subfolders(split) if images_in(f)] for split in subfolders(root)}
    return {
        split: _class_files(root, root / split, folders, described)
        for split, folders in by_split.items()
        if folders or split in SPLIT_NAMES
    }


def _draw_by_class(classes: Mapping[str, list[Path]], described: DatasetFile) -> dict[str, dict[str, list[Path]]]:
    """Draw the splits within each class, so that every class keeps its share of the images."""
    by_split: dict[str, dict[str, list[Path]]] = {}
    for name, files in classes.items():
        for split, members in draw_splits((f"{name}/{p.name}" for p in files), described).items():
            by_split.setdefault(split, {})[name] = [p for p in files if f"{name}/{p.name}" in members]
    return by_split


def _by_wordnet_id(root: Path, described: DatasetFile) -> dict[str, list[Path]]:
    """Images directly in ``root`` by the WordNet id in their names.

    Empty if a name has no id, or if there are images in subfolders.
    """
    if any(map(has_images, subfolders(root))):
        return {}
    excluded = described.excluded(root)
    classes: dict[str, list[Path]] = {}
    for path in images_in(root):
        match = _WORDNET_ID.search(path.stem)
        if match is None:
            return {}
        if path not in excluded:
            classes.setdefault(match[0], []).append(path)
    return classes


def _class_files(root: Path, parent: Path, folders: Sequence[Path], described: DatasetFile) -> dict[str, list[Path]]:
    """Images of each class folder, after a check that the folders are classes."""
    excluded = described.excluded(root)
    classes = {folder.name: [p for p in images_in(folder) if p not in excluded] for folder in folders}
    if described.layout != LAYOUT:
        _refuse_masks(parent, classes)
    for folder in subfolders(parent):
        nested = next((inner for inner in subfolders(folder) if any(map(images_in, (inner, *subfolders(inner))))), None)
        if nested is not None:
            raise DataError(
                f"{nested}: a folder of images inside the class folder {folder.name!r}; the images of a class must lie"
                " directly in its folder: move them up, or move the folder out of the data set"
            )
    return classes


def _refuse_masks(parent: Path, classes: Mapping[str, Sequence[Path]]) -> None:
    """Raise a DataError if folders of images and masks would be read as classes."""
    override = f"to use it as a class nevertheless, write 'layout: {LAYOUT}' into {FILE}"
    for name in classes:
        if name.lower() in (*IMAGE_FOLDERS, *MASK_FOLDERS, *SPLIT_NAMES) or name.removesuffix("annot") in SPLIT_NAMES:
            raise DataError(f"{parent / name}: looks like a folder of images or masks, not like a class; {override}")
    by_stems: dict[frozenset[str], list[str]] = {}
    for name, files in classes.items():
        by_stems.setdefault(frozenset(path.stem for path in files), []).append(name)
    for names in by_stems.values():  # folders whose files have the same stems
        masks = [name for name in names if len(names) > 1 and _look_like_masks(classes[name])]
        if masks and len(masks) < len(names):
            other = next(name for name in names if name not in masks)
            raise DataError(f"{parent / masks[0]}: seems to contain one mask for each image of {other!r}; {override}")


def _look_like_masks(files: Sequence[Path]) -> bool:
    """Whether the first five files are PNG files without colours, from their headers alone."""
    for path in files[:5]:
        try:
            with Image.open(path, formats=("PNG",)) as image:
                if image.mode not in ("1", "L", "P", "I", "I;16"):
                    return False
        except (OSError, ValueError, SyntaxError):  # another format, or damaged
            return False
    return True


def _class_names(root: Path, described: DatasetFile, folders: set[str]) -> tuple[str, ...]:
    if not described.names:
        return tuple(sorted(folders))
    if unknown := sorted(folders - set(described.names)):
        raise DataError(
            f"{root}: folders without a class in {FILE}, first: {', '.join(unknown[:5])}; add them to 'names'"
        )
    if absent := [name for name in described.names if name not in folders]:
        raise DataError(
            f"{root}: classes of {FILE} without a folder, first: {', '.join(absent[:5])}; remove them from 'names'"
        )
    return described.names
