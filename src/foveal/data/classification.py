"""One folder per class, as samples for classification.

Layouts (told apart by what lies where)::

    ROOT/<split>/<class>/*.jpg      a folder per split
    ROOT/<class>/*.jpg              no splits: "all", and "train" and "val" with val_share in dataset.yaml
    ROOT/*_n01440764_*.jpg          the same without folders: every file's name holds its class, a WordNet id

Classes are numbered in the order of their folder names, or of ``names`` in ``dataset.yaml``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError, InputError
from ..images.reading import read_image
from ..info import Labels
from .layout import (
    FILE,
    IMAGE_FOLDERS,
    MASK_FOLDERS,
    SPLIT_NAMES,
    DatasetFile,
    describe,
    drawn_splits,
    has_images,
    images_in,
    resolve_split,
    subfolders,
)

LAYOUT = "classes"
_WORDNET_ID = re.compile(r"(?<![a-zA-Z0-9])n\d{8}(?!\d)")


@dataclass(frozen=True)
class ClassificationData:
    """Image files with their class. Indexing reads: ``data[i] -> (image, class index)``.

    Attributes:
        files: (image path, class index), sorted by class, then by name.
        labels: names of the classes, the same for every split.
    """

    files: tuple[tuple[Path, int], ...]
    labels: Labels

    @classmethod
    def open(cls, root: str | Path, splits: Sequence[str]) -> ClassificationData:
        """Find the images of ``splits`` below ``root``.

        Raises:
            DataError: no such folder or split, no images, folders of masks among the classes, folders inside classes.
        """
        root = Path(root)
        described = describe(root)
        if described.layout not in ("", LAYOUT):
            raise DataError(f"{root / FILE}: layout {described.layout!r} is not for classification ({LAYOUT!r})")
        by_split = class_folders(root, described)
        if not by_split:
            raise DataError(f"{root}: no folders of images, one per class (ROOT/<split>/<class>/*.jpg)")
        found = {name for folders in by_split.values() for name in folders}
        names = _names(root, described, found)
        files: list[tuple[Path, int]] = []
        for split in splits:
            folders = by_split[resolve_split(split, tuple(by_split), root)]
            files += [(path, index) for index, name in enumerate(names) for path in folders.get(name, ())]
        if not files:
            raise DataError(f"{root}: no images in {' + '.join(splits)}")
        return cls(tuple(files), Labels(names, described.palette))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        """Read one image, ``(H, W, 3)`` RGB, and its class.

        Raises:
            DataError: unreadable.
        """
        path, label = self.files[index]
        try:
            return read_image(path), label
        except InputError as error:
            raise DataError(str(error)) from error

    def name(self, index: int) -> Path:
        """The file of an image."""
        return self.files[index][0]

    def order(self, rng: np.random.Generator, buffer: int) -> Sequence[int]:
        """All images in random order; single files need no ``buffer``."""
        return rng.permutation(len(self)).tolist()


def class_folders(root: Path, described: DatasetFile) -> dict[str, dict[str, list[Path]]]:
    """Images by split and class name; empty where ``root`` does not hold one folder per class.

    Raises:
        DataError: some folder would be taken for a class and hardly is one.
    """
    flat = [folder for folder in subfolders(root) if images_in(folder)]
    classes = _classes(root, root, flat, described) if flat else _by_wordnet_id(root, described)
    if classes:
        drawn: dict[str, dict[str, list[Path]]] = {}
        for name, files in classes.items():  # drawn class by class, so that each keeps its share
            for split, members in drawn_splits((f"{name}/{p.name}" for p in files), described).items():
                drawn.setdefault(split, {})[name] = [p for p in files if f"{name}/{p.name}" in members]
        return drawn
    by_split = {split.name: [f for f in subfolders(split) if images_in(f)] for split in subfolders(root)}
    return {
        split: _classes(root, root / split, folders, described)
        for split, folders in by_split.items()
        if folders or split in SPLIT_NAMES
    }


def _by_wordnet_id(root: Path, described: DatasetFile) -> dict[str, list[Path]]:
    """Images of a folder that has them in no other folder, by the WordNet id in their names; empty if one has none."""
    if any(map(has_images, subfolders(root))):
        return {}
    excluded = described.excluded(root)
    classes: dict[str, list[Path]] = {}
    for path in images_in(root):
        found = _WORDNET_ID.search(path.stem)
        if found is None:
            return {}
        if path not in excluded:
            classes.setdefault(found[0], []).append(path)
    return classes


def _classes(root: Path, parent: Path, folders: Sequence[Path], described: DatasetFile) -> dict[str, list[Path]]:
    """Images of each class folder, once it is sure that they are class folders."""
    excluded = described.excluded(root)
    classes = {folder.name: [p for p in images_in(folder) if p not in excluded] for folder in folders}
    if described.layout != LAYOUT:
        _refuse_masks(parent, classes)
    for folder in subfolders(parent):
        nested = next((inner for inner in subfolders(folder) if any(map(images_in, (inner, *subfolders(inner))))), None)
        if nested is not None:
            raise DataError(
                f"{nested}: a folder of images inside the class folder {folder.name!r}; a class holds its images"
                " directly: move them up, or move the folder out of the data set"
            )
    return classes


def _refuse_masks(parent: Path, classes: Mapping[str, Sequence[Path]]) -> None:
    """Stop where folders of images and masks would become classes."""
    insist = f"to have it as a class all the same, write 'layout: {LAYOUT}' into {FILE}"
    for name in classes:
        if name.lower() in (*IMAGE_FOLDERS, *MASK_FOLDERS, *SPLIT_NAMES) or name.removesuffix("annot") in SPLIT_NAMES:
            raise DataError(f"{parent / name}: looks like a folder of images or masks, not like a class; {insist}")
    by_stems: dict[frozenset[str], list[str]] = {}
    for name, files in classes.items():
        by_stems.setdefault(frozenset(path.stem for path in files), []).append(name)
    for alike in by_stems.values():
        masks = [name for name in alike if len(alike) > 1 and _index_pictures(classes[name])]
        if masks and len(masks) < len(alike):
            other = next(name for name in alike if name not in masks)
            raise DataError(f"{parent / masks[0]}: holds one mask for each image of {other!r}, it seems; {insist}")


def _index_pictures(files: Sequence[Path]) -> bool:
    """Whether the first few are PNG files without colours, as masks are; headers alone are read."""
    for path in files[:5]:
        try:
            with Image.open(path, formats=("PNG",)) as image:
                if image.mode not in ("1", "L", "P", "I", "I;16"):
                    return False
        except OSError:  # another format, or damaged
            return False
    return True


def _names(root: Path, described: DatasetFile, found: set[str]) -> tuple[str, ...]:
    if not described.names:
        return tuple(sorted(found))
    if foreign := sorted(found - set(described.names)):
        raise DataError(f"{root}: folders without a class in {FILE}, first: {', '.join(foreign[:5])}")
    if absent := [name for name in described.names if name not in found]:
        raise DataError(f"{root}: classes of {FILE} without a folder, first: {', '.join(absent[:5])}")
    return described.names
