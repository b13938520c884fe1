"""Samples for dense regression: images with maps of values, such as depth, surface normals or alpha.

Layouts (``MAPS`` is "targets", or the name of a kind of map in :data:`FOLDERS`; masks of valid pixels are optional)::

    ROOT/<split>/images/  ROOT/<split>/MAPS/  ROOT/<split>/valid/
    ROOT/images/<split>/  ROOT/MAPS/<split>/  ROOT/valid/<split>/
    ROOT/images/          ROOT/MAPS/          ROOT/valid/           no splits: "all", or drawn with val_share

An image, its map and its mask have the same stem. ``target`` in ``dataset.yaml`` says what the maps hold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..config import build_config
from ..errors import DataError, InputError
from ..images.bands import RGB, Bands
from ..info import Labels, Target
from .layout import (
    ALL,
    FILE,
    IMAGE_FOLDERS,
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
from .targets import SUFFIXES, read_target

LAYOUT = "maps"
#: Names of folders with maps, and the kind that they say unless ``dataset.yaml`` does; empty: none.
FOLDERS = {
    "targets": "", "target": "", "values": "values", "heatmaps": "values", "depth": "depth", "depths": "depth",
    "normals": "normals", "alpha": "alpha", "alphas": "alpha", "mattes": "alpha",
}  # fmt: skip
VALID = "valid"  #: name of folders with masks of valid pixels


class _Place(NamedTuple):
    """Folders of a split."""

    images: Path
    maps: Path
    valid: Path | None


@dataclass(frozen=True)
class RegressionData:
    """Images with maps of values. Indexing reads: ``data[i] -> (image, values)``.

    Attributes:
        files: (image, map, mask of valid pixels or None) of each sample, sorted.
        target: what the maps hold.
        labels: names of their channels.
        bands: number of bands and type of values as which the images are read.
    """

    files: tuple[tuple[Path, Path, Path | None], ...]
    target: Target
    labels: Labels
    bands: Bands = RGB

    @classmethod
    def open(cls, root: str | Path, splits: Sequence[str]) -> RegressionData:
        """Find the samples of ``splits`` below ``root``.

        Raises:
            DataError: there are no folders of images and maps, several kinds of maps, no such split, files without a
                partner, or no map that can be read.
            ConfigError: ``dataset.yaml`` has unknown keys or values.
        """
        root = Path(root)
        described = describe(root)
        places = splits_of(root, described)
        if not places:
            raise UnknownLayoutError(
                f"{root}: no folder of images beside a folder of maps ({', '.join(FOLDERS)}): docs/data.md shows the "
                "layouts"
            )
        names = [resolve_split(split, tuple(places), root) for split in splits]
        files, problems = open_splits(root, names, described)
        raise_first(problems, root)
        if not files:
            raise DataError(f"{root}: no images in {' + '.join(splits)}")
        target = target_of(places[names[0]].maps, described)
        return cls(files, target, Labels(target.names(_channels(files, target))))

    def with_bands(self, bands: Bands) -> RegressionData:
        """The same samples, whose images are read with these bands."""
        return dataclasses.replace(self, bands=bands)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """Read one sample: the image ``(H, W, C)`` and values ``(H, W, channels)``, NaN where there is none.

        Raises:
            DataError: a file is unreadable, sizes or numbers of channels differ, or values are not of the kind.
        """
        image_path, path, mask = self.files[index]
        try:
            image = self.bands.read(image_path)
        except InputError as error:
            raise DataError(str(error)) from error
        values = read_target(path, self.target, mask)
        if image.shape[:2] != values.shape[:2]:
            raise DataError(
                f"{path}: map of {values.shape[1]}x{values.shape[0]} (W x H) for the image {image_path.name} of "
                f"{image.shape[1]}x{image.shape[0]}"
            )
        if values.shape[2] != len(self.labels.names):
            raise DataError(f"{path}: {values.shape[2]} channels, but the first map has {len(self.labels.names)}")
        return image, values

    def name(self, index: int) -> Path:
        """The image file of a sample."""
        return self.files[index][0]

    def order(self, rng: np.random.Generator, buffer: int) -> Sequence[int]:
        """All indices in random order; ``buffer`` is not used for single files."""
        return rng.permutation(len(self)).tolist()


_TRIES = 20  # maps of which one must be readable to find the number of channels


def _channels(files: Sequence[tuple[Path, Path, Path | None]], target: Target) -> int:
    """Number of channels of the first map that can be read."""
    tried = files[:_TRIES]
    for number, (_, path, mask) in enumerate(tried, 1):
        try:
            return read_target(path, target, mask).shape[2]
        except DataError:
            if number == len(tried):
                raise
    raise AssertionError("no files")


def target_of(maps: Path, described: DatasetFile) -> Target:
    """What the maps of a folder hold: ``target`` of ``dataset.yaml``, else the kind that its name says."""
    folder = next((each for each in (maps, maps.parent) if each.name in FOLDERS), maps)
    kind = described.target.get("kind") or FOLDERS.get(folder.name) or Target().kind
    return build_config(Target, {**described.target, "kind": kind}, f"{FILE}: target")


def splits_of(root: Path, described: DatasetFile) -> dict[str, _Place]:
    """The folders of each split; empty if the folder has another layout.

    Raises:
        DataError: there are several folders of maps, and ``dataset.yaml`` does not say which to use.
    """
    found: dict[str, _Place] = {}
    for folder in subfolders(root):
        if place := _place(folder, "", described):
            found[folder.name] = place
    if images := next((root / name for name in IMAGE_FOLDERS if (root / name).is_dir()), None):
        for inner in subfolders(images):
            if place := _place(root, inner.name, described):
                found[inner.name] = place
    if not found and (place := _place(root, "", described)):
        names = (ALL, "train", "val") if described.val_share else (ALL,)
        found = dict.fromkeys(names, place)
    return {name: found[name] for name in sorted(found, key=_order)}


def _order(split: str) -> tuple[int, str]:
    return (SPLIT_NAMES.index(split) if split in SPLIT_NAMES else len(SPLIT_NAMES), split)


def _place(root: Path, split: str, described: DatasetFile) -> _Place | None:
    """The folders of images, maps and masks in ``root``, each with a folder for the split if it has a name."""
    images = next((folder for name in IMAGE_FOLDERS if images_in(folder := root / name / split)), None)
    if images is None:
        return None
    kind = described.target.get("kind", "")
    maps = [root / name / split for name in FOLDERS if maps_in(root / name / split)]
    fitting = [folder for folder in maps if not kind or FOLDERS[_named(folder, split)] in ("", kind)]
    if not fitting:
        return None
    if len(fitting) > 1:
        names = ", ".join(_named(folder, split) for folder in fitting)
        raise DataError(f"{root}: maps in {names}: write 'target: {{kind: ...}}' into {FILE} to choose one of them")
    valid = root / VALID / split
    return _Place(images, fitting[0], valid if valid.is_dir() else None)


def _named(folder: Path, split: str) -> str:
    return folder.parent.name if split else folder.name


def other_folders(files: Sequence[tuple[Path, Path, Path | None]]) -> set[Path]:
    """Folders of other kinds of maps next to those of samples."""
    folders = {path.parent for _, path, _ in files}
    inside = {folder.parent / name for folder in folders for name in FOLDERS if folder.name in FOLDERS}
    return inside | {folder.parents[1] / name / folder.name for folder in folders for name in FOLDERS}


def maps_in(folder: Path) -> list[Path]:
    """Files with maps directly inside a folder, sorted; empty if the folder does not exist."""
    if not folder.is_dir():
        return []
    files = (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
    return sorted(path for path in files if path.is_file())


def open_splits(
    root: Path, splits: Sequence[str], described: DatasetFile
) -> tuple[tuple[tuple[Path, Path, Path | None], ...], list[Problem]]:
    """The files of some splits, and a problem for each file without a partner."""
    places, excluded = splits_of(root, described), described.excluded(root)
    files: list[tuple[Path, Path, Path | None]] = []
    problems: list[Problem] = []
    for split in splits:
        images, maps, valid = places[split]
        pairs, found = match_files(
            by_stem(images_in(images), images), [by_stem(maps_in(maps), maps)], ("image", "map"), excluded
        )
        masks: dict[Path, Path] = {}
        if valid is not None:
            masked, more = match_files(
                by_stem((path for path, _ in pairs), images),
                [by_stem(images_in(valid), valid)],
                ("map", "mask of valid pixels"),
                excluded,
            )
            masks, found = dict(masked), [*found, *more]
        if len(set(places.values())) < len(places):  # several splits in one folder are drawn at random
            names = draw_splits((image.stem for image, _ in pairs), described)[split]
            pairs = [pair for pair in pairs if pair[0].stem in names]
        files += [(image, path, masks.get(image)) for image, path in pairs]
        problems += found
    return tuple(files), problems
