"""Samples for super-resolution: pairs of small and large images of the same scene.

Layouts (``S`` is the scale; without small images, they are computed by :func:`bicubic_downscale`)::

    ROOT/HR/*.png               ROOT/LR_bicubic/XS/, LR/XS/, LRxS/, LR_xS/ or LR/
    ROOT/<split>/HR/*.png       ROOT/<split>/LR_bicubic/XS/ and so on, as above
    ROOT/<name>_<split>_HR/     ROOT/<name>_<split>_LR_bicubic/XS/          (DIV2K)
    ROOT/<split>/*.png          only large images
    ROOT/*.png                  only large images, no splits: "all", and "train" and "val" with val_share
    ROOT/<set>/*.png            only large images in several sets, each a split: set5, set14, bsd100

A small image has the stem of its large image, optionally followed by ``xS`` or ``_xS``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, InputError
from ..images.reading import read_image
from ..images.resampling import bicubic_downscale
from ..info import Labels
from .layout import (
    ALL,
    FILE,
    SPLIT_NAMES,
    DatasetFile,
    Problem,
    UnknownLayoutError,
    by_stem,
    describe,
    draw_splits,
    images_in,
    match_files,
    raise_first,
    resolve_split,
    subfolders,
)

LAYOUT = "high_low"
_HIGH = ("HR", "hr")


@dataclass(frozen=True)
class SuperResolutionData:
    """Pairs of image files. Indexing reads: ``data[i] -> (small, large)``.

    Attributes:
        pairs: (small, large) paths, sorted; small is ``None`` if that image is computed from the large one.
        scale: side of the large image divided by that of the small one.
    """

    pairs: tuple[tuple[Path | None, Path], ...]
    scale: int

    @classmethod
    def open(cls, root: str | Path, splits: Sequence[str], scale: int, *, small: bool = True) -> SuperResolutionData:
        """Find the pairs of ``splits`` below ``root``.

        Args:
            root: folder of the data set.
            splits: names of the splits; their pairs are joined.
            scale: whole number; 1 pairs images of the same size, for restoration.
            small: ``False``: ignore folders of small images and compute all small images from the large ones.

        Raises:
            InputError: ``scale`` is below 1.
            DataError: a split does not exist or is empty, images have no partner, or there are small images for other
                scales only.
        """
        root = Path(root)
        if scale < 1:
            raise InputError(f"scale={scale}: expected a whole number of at least 1")
        described = describe(root)
        if described.layout not in ("", LAYOUT):
            raise DataError(
                f"{root / FILE}: layout {described.layout!r} is not for super-resolution; write"
                f" 'layout: {LAYOUT}', or leave 'layout' out"
            )
        names = tuple(sets_of(root, described))
        if not names:
            raise UnknownLayoutError(f"{root}: neither folders of large images (HR/) nor images")
        pairs: list[tuple[Path | None, Path]] = []
        problems: list[Problem] = []
        for split in splits:
            split_pairs, unmatched = open_split(root, resolve_split(split, names, root), scale, described, small)
            pairs += split_pairs
            problems += unmatched
        raise_first(problems, root)
        if not pairs:
            raise DataError(f"{root}: no images in {' + '.join(splits)}")
        return cls(tuple(pairs), scale)

    @property
    def labels(self) -> Labels:
        """Empty: there are no classes."""
        return Labels()

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> Path:
        """The file of a large image."""
        return self.pairs[index][1]

    def order(self, rng: np.random.Generator, buffer: int) -> list[int]:
        """All indices in random order; ``buffer`` is not used for single files."""
        return rng.permutation(len(self)).tolist()

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Read one pair: ``(h, w, 3)`` and ``(h * scale, w * scale, 3)``, uint8 RGB.

        If the sides of a large image are not divisible by the scale, its last rows and columns are cropped.

        Raises:
            DataError: a file is unreadable, or the sizes of a pair do not fit together.
        """
        small_path, large_path = self.pairs[index]
        try:
            large = read_image(large_path)
            height, width = (side // self.scale for side in large.shape[:2])
            large = large[: height * self.scale, : width * self.scale]
            if small_path is None:
                if not large.size:
                    raise DataError(f"{large_path}: smaller than the scale {self.scale}")
                return bicubic_downscale(large, self.scale), large
            small = read_image(small_path)
        except InputError as error:
            raise DataError(str(error)) from error
        if small.shape[:2] != (height, width):
            raise DataError(
                f"{small_path}: {small.shape[1]}x{small.shape[0]} (W x H), but 1/{self.scale} of {large_path.name} is"
                f" {width}x{height}"
            )
        return small, large


def high_folders(root: Path, described: DatasetFile) -> dict[str, Path]:
    """Folders of large images by split; empty if there are none."""
    folders: dict[str, Path] = {}
    for folder in subfolders(root):
        name, _, kind = folder.name.rpartition("_")
        inner = next((folder / high for high in _HIGH if images_in(folder / high)), None)
        if folder.name in _HIGH and images_in(folder):
            folders |= dict.fromkeys(_random_splits(described), folder)
        elif kind in _HIGH and images_in(folder):
            folders[next((split for split in SPLIT_NAMES if name.split("_")[-1] == split), name)] = folder
        elif inner is not None:
            folders[folder.name] = inner
    if not folders:
        folders = {f.name: f for f in subfolders(root) if f.name in SPLIT_NAMES and images_in(f)}
    if not folders and images_in(root):
        folders = dict.fromkeys(_random_splits(described), root)
    return folders


def sets_of(root: Path, described: DatasetFile) -> dict[str, Path]:
    """The result of :func:`high_folders`; if it is empty, every folder of images under its own name."""
    folders = high_folders(root, described)
    return folders or {folder.name: folder for folder in subfolders(root) if images_in(folder)}


def open_split(
    root: Path, split: str, scale: int, described: DatasetFile, small: bool = True
) -> tuple[list[tuple[Path | None, Path]], list[Problem]]:
    """The pairs of one split, and a problem for each file without a partner.

    The arguments are those of :meth:`SuperResolutionData.open`.

    Raises:
        DataError: there are small images for other scales only.
    """
    folders = sets_of(root, described)
    high, excluded = folders[split], described.excluded(root)
    large = images_in(high)
    low = _low_folder(high, scale) if small else None
    if low is None:
        pairs: list[tuple[Path | None, Path]] = [(None, path) for path in large if path not in excluded]
        problems: list[Problem] = []
    else:
        endings = ("", f"x{scale}", f"_x{scale}")
        stems = [by_stem(images_in(low), low, ending) for ending in endings]
        matches, problems = match_files(by_stem(large, high), stems, ("large image", "small image"), excluded)
        pairs = [(small_path, large_path) for large_path, small_path in matches]
    if len(set(folders.values())) < len(folders):  # several splits in one folder are drawn at random
        names = draw_splits((path.stem for _, path in pairs), described)[split]
        pairs = [(small_path, path) for small_path, path in pairs if path.stem in names]
    return pairs, problems


def _random_splits(described: DatasetFile) -> tuple[str, ...]:
    return (ALL, "train", "val") if described.val_share else (ALL,)


def low_folders(high: Path) -> dict[int, Path]:
    """Folders of small images next to a folder of large ones, by scale; 0: the folder's name has no scale."""
    base = next((high.name.removesuffix(kind) for kind in _HIGH if high.name.endswith(kind)), None)
    if base is None:
        return {}
    folders: dict[int, Path] = {}
    for folder in subfolders(high.parent):
        match = re.fullmatch(re.escape(base) + r"(?:LR_bicubic|LR|lr)(?:_?[xX](\d+))?", folder.name)
        if match and images_in(folder):
            folders[int(match[1] or 0)] = folder
        elif match:
            inner = ((re.fullmatch(r"[xX](\d+)", f.name), f) for f in subfolders(folder))
            folders |= {int(scale[1]): f for scale, f in inner if scale and images_in(f)}
    return folders


def _low_folder(high: Path, scale: int) -> Path | None:
    """The folder of small images of this scale for a folder of large ones; ``None`` if there are no small images."""
    folders = low_folders(high)
    if folders and scale not in folders and 0 not in folders:
        existing = ", ".join(str(folder.relative_to(high.parent)) for folder in folders.values())
        raise DataError(f"{high.parent}: no small images for scale {scale}, only {existing}")
    return folders.get(scale, folders.get(0))
