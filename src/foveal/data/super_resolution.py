"""Pairs of small and large images of the same scene, as samples for super-resolution.

Layouts (``S`` is the scale; where there are no small images they are made, see :func:`bicubic_downscale`)::

    ROOT/HR/*.png               ROOT/LR_bicubic/XS/, LR/XS/, LRxS/, LR_xS/ or LR/
    ROOT/<split>/HR/*.png       the same beside it
    ROOT/<name>_<split>_HR/     ROOT/<name>_<split>_LR_bicubic/XS/          (DIV2K)
    ROOT/<split>/*.png          large images alone
    ROOT/*.png                  large images alone, no splits: "all", "train" and "val" with val_share
    ROOT/<set>/*.png            the same in several sets, each a split: set5, set14, bsd100

Small images have the stem of the large one, or end in ``xS`` or ``_xS``.
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
    by_stem,
    describe,
    drawn_splits,
    images_in,
    matched,
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
        pairs: (small, large) paths, sorted; ``None`` where the small image is made from the large one.
        scale: sides of the large image over those of the small one.
    """

    pairs: tuple[tuple[Path | None, Path], ...]
    scale: int

    @classmethod
    def open(cls, root: str | Path, splits: Sequence[str], scale: int, *, small: bool = True) -> SuperResolutionData:
        """Find the pairs of ``splits`` below ``root``.

        Args:
            root: folder of the data set.
            splits: parts of it, together one set.
            scale: 1 pairs images of one size, for restoration.
            small: ``False``: leave folders of small images alone, make them from the large ones.

        Raises:
            InputError: ``scale`` is below 1.
            DataError: no such split, images without a partner, no small images of this scale beside those of others.
        """
        root = Path(root)
        if scale < 1:
            raise InputError(f"scale={scale}: a whole number from 1 up")
        described = describe(root)
        if described.layout not in ("", LAYOUT):
            raise DataError(f"{root / FILE}: layout {described.layout!r} is not for super-resolution ({LAYOUT!r})")
        have = sets_of(root, described)
        if not have:
            raise DataError(f"{root}: neither folders of large images (HR/) nor images")
        pairs: list[tuple[Path | None, Path]] = []
        problems: list[Problem] = []
        for split in splits:
            found, unmatched = open_split(root, resolve_split(split, tuple(have), root), scale, described, small)
            pairs += found
            problems += unmatched
        raise_first(problems, root)
        if not pairs:
            raise DataError(f"{root}: no images in {' + '.join(splits)}")
        return cls(tuple(pairs), scale)

    @property
    def labels(self) -> Labels:
        """None: pictures have no classes."""
        return Labels()

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> Path:
        """The large image's file."""
        return self.pairs[index][1]

    def order(self, rng: np.random.Generator, buffer: int) -> list[int]:
        """All samples in random order."""
        return rng.permutation(len(self)).tolist()

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Read one pair: ``(h, w, 3)`` and ``(h * scale, w * scale, 3)``, uint8 RGB.

        A large image loses the rows and columns at its end that do not fill a pixel of the small one.

        Raises:
            DataError: unreadable, or of sizes that do not fit.
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
    """Folders of large images by split; empty where there are none."""
    found: dict[str, Path] = {}
    for folder in subfolders(root):
        name, _, kind = folder.name.rpartition("_")
        inner = next((folder / high for high in _HIGH if images_in(folder / high)), None)
        if folder.name in _HIGH and images_in(folder):
            found |= dict.fromkeys(_drawable(described), folder)
        elif kind in _HIGH and images_in(folder):
            found[next((split for split in SPLIT_NAMES if name.split("_")[-1] == split), name)] = folder
        elif inner is not None:
            found[folder.name] = inner
    if not found:
        found = {folder.name: folder for folder in subfolders(root) if folder.name in SPLIT_NAMES and images_in(folder)}
    if not found and images_in(root):
        found = dict.fromkeys(_drawable(described), root)
    return found


def sets_of(root: Path, described: DatasetFile) -> dict[str, Path]:
    """:func:`high_folders`, or where it finds none, every folder of images by its name."""
    found = high_folders(root, described)
    return found or {folder.name: folder for folder in subfolders(root) if images_in(folder)}


def open_split(
    root: Path, split: str, scale: int, described: DatasetFile, small: bool = True
) -> tuple[list[tuple[Path | None, Path]], list[Problem]]:
    """The pairs of one split and the files that have no partner.

    Raises:
        DataError: there are folders of small images, none for this scale.
    """
    folders = sets_of(root, described)
    high, excluded = folders[split], described.excluded(root)
    drawn = len(set(folders.values())) < len(folders)
    large = images_in(high)
    low = _low_folder(high, scale) if small else None
    if low is None:
        pairs: list[tuple[Path | None, Path]] = [(None, path) for path in large if path not in excluded]
        problems: list[Problem] = []
    else:
        endings = ("", f"x{scale}", f"_x{scale}")
        stems = [by_stem(images_in(low), low, ending) for ending in endings]
        found, problems = matched(by_stem(large, high), stems, ("large image", "small image"), excluded)
        pairs = [(small_path, large_path) for large_path, small_path in found]
    if drawn:
        names = drawn_splits((path.stem for _, path in pairs), described)[split]
        pairs = [(small_path, path) for small_path, path in pairs if path.stem in names]
    return pairs, problems


def _drawable(described: DatasetFile) -> tuple[str, ...]:
    return (ALL, "train", "val") if described.val_share else (ALL,)


def low_folders(high: Path) -> dict[int, Path]:
    """Folders of small images beside a folder of large ones, by scale; 0: the name tells none, any may be meant."""
    base = next((high.name.removesuffix(kind) for kind in _HIGH if high.name.endswith(kind)), None)
    if base is None:
        return {}
    found: dict[int, Path] = {}
    for folder in subfolders(high.parent):
        match = re.fullmatch(re.escape(base) + r"(?:LR_bicubic|LR|lr)(?:_?[xX](\d+))?", folder.name)
        if match and images_in(folder):
            found[int(match[1] or 0)] = folder
        elif match:
            inner = ((re.fullmatch(r"[xX](\d+)", f.name), f) for f in subfolders(folder))
            found |= {int(scale[1]): f for scale, f in inner if scale and images_in(f)}
    return found


def _low_folder(high: Path, scale: int) -> Path | None:
    """Where the small images for a folder of large ones lie; ``None`` where there are none at all."""
    found = low_folders(high)
    if found and scale not in found and 0 not in found:
        have = ", ".join(str(folder.relative_to(high.parent)) for folder in found.values())
        raise DataError(f"{high.parent}: no small images for scale {scale}, only {have}")
    return found.get(scale, found.get(0))
