"""Images with one file of objects each, as YOLO and labelme write them: find the folders and pair the files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from ..errors import DataError
from ..images.formats import SUFFIXES
from .layout import (
    ALL,
    IMAGE_FOLDERS,
    SPLIT_NAMES,
    DatasetFile,
    Problem,
    by_stem,
    draw_splits,
    images_in,
    subfolders,
)

_LOOKED_AT = 5  # files of a folder

Folders = Mapping[str, tuple[Path, Path]]  # folder of images and folder of files by split


@dataclass(frozen=True)
class Kind:
    """A kind of files with the objects of an image.

    Attributes:
        suffix: of the files.
        folders: names of the folders that they are in, next to folders of images.
        fits: whether a file has the format; it decides in folders that also have images.
        strict: whether it decides in ``folders``, too.
        partner: finds the image of a file in a data set if it has another stem.
    """

    suffix: str
    folders: tuple[str, ...]
    fits: Callable[[Path], bool]
    strict: bool = True
    partner: Callable[[Path, Path], Path | None] = lambda file, root: None


@dataclass
class Paired:
    """The files of some splits.

    Attributes:
        pairs: (image, file), sorted.
        alone: images without a file, each with the path that it would have.
        problems: files without an image, images of one stem.
    """

    pairs: list[tuple[Path, Path]] = field(default_factory=list)
    alone: list[tuple[Path, Path]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def find_folders(root: Path, kind: Kind) -> Folders:
    """Folders of images and of files by split; the split is "all" if there are no folders for splits.

    Folders of their own for the files come first, then files beside the images.

    Raises:
        DataError: a split has several.
    """
    folders: dict[str, tuple[Path, Path]] = {}
    for split, images, files in _apart(root, kind):
        if not (files.is_dir() and _has_files(files, kind, split) and images_in(images, deep=split != ALL)):
            continue
        without_year = re.sub(r"\d{4}$", "", split)  # as in val2017
        name = without_year if without_year in SPLIT_NAMES else split
        if name in folders:
            raise DataError(f"{root}: objects of {name!r} in {folders[name][1]} and in {files}: keep one of them")
        folders[name] = (images, files)
    if folders:
        return folders
    parents = [root, *(folder for folder in subfolders(root) if folder.name in IMAGE_FOLDERS)]
    inside = [split for parent in parents for split in subfolders(parent) if split.name in SPLIT_NAMES]
    folders = {split.name: (split, split) for split in inside if _has_pairs(split, kind)}
    return folders or ({ALL: (root, root)} if _has_pairs(root, kind) else {})


def split_names(folders: Folders, described: DatasetFile) -> tuple[str, ...]:
    """Names of the splits, with those that ``val_share`` draws."""
    return ("train", "val", ALL) if described.val_share and set(folders) == {ALL} else tuple(folders)


def pair_files(root: Path, folders: Folders, splits: Sequence[str], described: DatasetFile, kind: Kind) -> Paired:
    """Pair the images and files of some splits by their stems."""
    excluded = described.excluded(root)
    result = Paired()
    for split in splits:
        images, files = folders.get(split) or folders[ALL]
        deep = split != ALL or len(folders) == 1  # otherwise the folders inside are those of the splits
        found = _pair(root, images, files, excluded, kind, deep)
        if split not in folders:
            drawn = draw_splits((image.stem for image, _ in (*found.pairs, *found.alone)), described)[split]
            found.pairs = [pair for pair in found.pairs if pair[0].stem in drawn]
            found.alone = [pair for pair in found.alone if pair[0].stem in drawn]
        result.pairs += found.pairs
        result.alone += found.alone
        result.problems += found.problems
    return result


def files_of(folders: Folders, kind: Kind) -> Iterator[Path]:
    """All files of all splits, sorted within a split."""
    for _, files in dict.fromkeys(folders.values()):
        yield from _files(files, kind, deep=True)


def _pair(root: Path, images: Path, files: Path, excluded: frozenset[Path], kind: Kind, deep: bool) -> Paired:
    """Pair by the path below the two folders without suffix; other files beside images do not count."""
    groups = by_stem(images_in(images, deep=deep), images)
    every = {p.relative_to(files).with_suffix("").as_posix(): p for p in _files(files, kind, deep)}
    by_key = {key: path for key, path in every.items() if path not in excluded}
    result = Paired()
    used: set[Path] = set()
    for key, file in by_key.items():
        partner = groups[key][0] if key in groups else kind.partner(file, root)
        if partner is not None:
            used.add(partner)
            result.pairs += [] if excluded.issuperset(groups.get(key, [partner])) else [(partner, file)]
        elif _needs_image(file, images, files, kind):
            result.problems.append(Problem(file, "has no image; partners have the same stem"))
    for key, paths in groups.items():
        known = [path for path in paths if path not in excluded]
        result.problems += [
            Problem(path, f"has the same stem as {known[0].name}; give it another name") for path in known[1:]
        ]
        if known and key not in every and not used.intersection(known):
            result.alone.append((known[0], files / f"{key}{kind.suffix}"))
    return result


def _files(folder: Path, kind: Kind, deep: bool) -> list[Path]:
    return sorted(folder.rglob(f"*{kind.suffix}") if deep else folder.glob(f"*{kind.suffix}"))


def _apart(root: Path, kind: Kind) -> Iterator[tuple[str, Path, Path]]:
    """Names of splits with their folders of images and of files; the latter need not exist."""
    images = [root / name for name in IMAGE_FOLDERS if (root / name).is_dir()]
    files = [root / name for name in kind.folders if (root / name).is_dir()]
    yield from ((ALL, i, f) for i in images for f in files)
    yield from ((split.name, split, f / split.name) for i in images for f in files for split in subfolders(i))
    for split in subfolders(root):
        yield from ((split.name, split / i, split / f) for i in IMAGE_FOLDERS for f in kind.folders)


def _has_files(folder: Path, kind: Kind, split: str) -> bool:
    """Whether there are files in a folder of their own; for a split also in folders below, up to two deep."""
    files = _down(folder, kind, 1 if split == ALL else 3)
    return any(True for _ in files) if not kind.strict else any(kind.fits(file) for file in islice(files, _LOOKED_AT))


def _has_pairs(folder: Path, kind: Kind) -> bool:
    """Whether there are files of the format beside images of the same stem, up to two folders deep."""
    files = (f for f in _down(folder, kind, 3) if any(f.with_suffix(suffix).is_file() for suffix in SUFFIXES))
    return any(kind.fits(file) for file in islice(files, _LOOKED_AT))


def _down(folder: Path, kind: Kind, depth: int) -> Iterator[Path]:
    return chain.from_iterable(folder.glob(f"{'*/' * i}*{kind.suffix}") for i in range(depth))


def _needs_image(file: Path, images: Path, files: Path, kind: Kind) -> bool:
    """Whether a file without an image of its stem should have one."""
    return kind.fits(file) if kind.strict or images == files else file.stem != "classes"
