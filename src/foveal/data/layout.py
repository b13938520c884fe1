"""What all kinds of data sets share: ``dataset.yaml``, the names of splits, drawn splits, files by their stem."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from ..config import build_config, read_yaml
from ..errors import ConfigError, DataError, nearest
from ..images.formats import is_image
from ..info import IGNORE

FILE = "dataset.yaml"
ALL = "all"  #: the one split of a data set that has no folders for splits
SAME_SPLITS = (("train", "training"), ("val", "valid", "validation"), ("test", "testing"))
SPLIT_NAMES = tuple(name for names in SAME_SPLITS for name in names)
IMAGE_FOLDERS = ("images", "image", "imgs", "img")
MASK_FOLDERS = ("masks", "mask", "annotations", "annotation", "labels", "label", "annot", "gt")


class Problem(NamedTuple):
    """One thing that is wrong with a data set, and where."""

    file: Path
    error: str


def raise_first(problems: Sequence[Problem], root: Path) -> None:
    """Raise the first of ``problems`` as a DataError that counts the others; do nothing where there is none."""
    if problems:
        more = f" (and {len(problems) - 1} more problems: foveal data check {root})" if len(problems) > 1 else ""
        raise DataError(f"{problems[0].file}: {problems[0].error}{more}")


@dataclass(frozen=True)
class DatasetFile:
    """Keys of ``dataset.yaml``, all of them optional where the layout itself tells.

    Attributes:
        layout: name of the layout; empty: told from the folders.
        names: one class name per id. They replace what the layout says about classes; ids are then read as they are.
        palette: one (red, green, blue) per class; needed for masks of colours.
        ignore: ids of the masks that are left out.
        masks: whether masks hold "ids" or "colours".
        ignore_colours: colours that are left out.
        unknown: ids or colours without a class are an "error", or "ignore" leaves their pixels out.
        val_share: for data without splits: share of the files that is drawn for "val", the others being "train".
        seed: of that draw.
        exclude: file with paths to leave out, one per line, relative to the data set (``foveal data check
            --quarantine`` writes one).
    """

    layout: str = ""
    names: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    ignore: tuple[int, ...] = (IGNORE,)
    masks: Literal["ids", "colours"] = "ids"
    ignore_colours: tuple[tuple[int, int, int], ...] = ()
    unknown: Literal["error", "ignore"] = "error"
    val_share: float = 0.0
    seed: int = 0
    exclude: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.val_share < 1:
            raise ConfigError(f"{FILE}: val_share={self.val_share} is out of range: a share from 0 to below 1")
        if not all(-1 <= i < 1 << 16 for i in self.ignore):
            raise ConfigError(f"{FILE}: ignore={list(self.ignore)}: ids are -1 to 65535")
        if twice := next((name for i, name in enumerate(self.names) if name in self.names[:i]), None):
            raise ConfigError(f"{FILE}: two classes are called {twice!r}: tables are by name")
        for colour in (*self.palette, *self.ignore_colours):
            if not all(0 <= value <= 255 for value in colour):
                raise ConfigError(f"{FILE}: colour {list(colour)}: red, green and blue are 0 to 255")
        if self.palette and self.names and len(self.palette) != len(self.names):
            raise ConfigError(f"{FILE}: {len(self.names)} names but {len(self.palette)} colours in the palette")
        if self.masks == "colours" and len(set(self.palette)) < len(self.palette):
            raise ConfigError(f"{FILE}: two classes share a colour of the palette; colours are what tells them apart")

    def excluded(self, root: Path) -> frozenset[Path]:
        """The files to leave out.

        Raises:
            DataError: the list cannot be read.
        """
        if not self.exclude:
            return frozenset()
        try:
            lines = (root / self.exclude).read_text("utf-8", errors="surrogateescape").splitlines()
        except OSError as error:
            raise DataError(f"{root / FILE}: 'exclude' names {self.exclude}, which cannot be read ({error})") from error
        return frozenset(root / line.strip() for line in lines if line.strip())


def describe(root: Path) -> DatasetFile:
    """``root/dataset.yaml``, or the defaults where there is none.

    Raises:
        DataError: no such folder.
        ConfigError: the file has unknown keys or values of other types.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    file = root / FILE
    return build_config(DatasetFile, read_yaml(file), str(file)) if file.exists() else DatasetFile()


def resolve_split(wanted: str, have: Sequence[str], root: Path) -> str:
    """The name that ``root`` uses for a split: "val" may be called "valid" or "validation".

    Raises:
        DataError: there is no such split.
    """
    same = next((names for names in SAME_SPLITS if wanted in names), ())
    for name in (wanted, *same):
        if name in have:
            return name
    hint = nearest(wanted, have)
    if tuple(have) == (ALL,):
        hint = f", which has none; write 'val_share: 0.1' into {FILE} to have train and val drawn, or take 'all'"
    raise DataError(f"{root}: no split {wanted!r} in this folder{hint}")


def drawn_splits(names: Iterable[str], described: DatasetFile) -> dict[str, set[str]]:
    """Split ``names`` at random into "train" and "val", beside "all"; the same names and seed give the same draw.

    Neither the order of the names nor the machine matters: files are ranked by a hash of seed and name.
    """
    names = set(names)
    if not described.val_share:
        return {ALL: names}
    ranked = sorted(
        names, key=lambda name: hashlib.sha256(f"{described.seed}/{name}".encode("utf-8", "surrogateescape")).digest()
    )
    count = min(max(1, round(len(ranked) * described.val_share)), len(ranked) - 1)
    return {"train": set(ranked[count:]), "val": set(ranked[:count]), ALL: names}


def subfolders(folder: Path) -> list[Path]:
    """Folders inside a folder, sorted; hidden ones left out; none where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))


def images_in(folder: Path, *, deep: bool = False) -> list[Path]:
    """Image files directly (``deep``: anywhere) inside a folder, sorted; none where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(p for p in (folder.rglob("*") if deep else folder.iterdir()) if is_image(p) and p.is_file())


def has_images(folder: Path) -> bool:
    """Whether there is an image anywhere inside a folder; the first one found will do."""
    return folder.is_dir() and any(is_image(p) and p.is_file() for p in folder.rglob("*"))


def by_stem(files: Iterable[Path], folder: Path, ending: str = "") -> dict[str, list[Path]]:
    """Those files whose stem ends with ``ending``, by their path below ``folder`` without it and the suffix."""
    found: dict[str, list[Path]] = {}
    for path in files:
        if path.stem.endswith(ending):
            key = path.relative_to(folder).with_suffix("").as_posix().removesuffix(ending)
            found.setdefault(key, []).append(path)
    return found


def matched(
    first: Mapping[str, Sequence[Path]],
    seconds: Sequence[Mapping[str, Sequence[Path]]],
    kinds: tuple[str, str],
    excluded: frozenset[Path] = frozenset(),
) -> tuple[list[tuple[Path, Path]], list[Problem]]:
    """Pair files by stem: those of ``first`` with those of the first of ``seconds`` that shares a stem with them.

    Returns:
        The pairs, sorted, and every file without a partner or with the stem of another. An excluded file takes its
        partner with it.
    """
    second = next((found for found in seconds if first.keys() & found.keys()), seconds[0])
    gone = {key for found in (first, second) for key, paths in found.items() if excluded.issuperset(paths)}
    first, second = (
        {key: [p for p in paths if p not in excluded] for key, paths in found.items() if key not in gone}
        for found in (first, second)
    )
    rule = "partners have the same stem"
    problems = [
        Problem(path, f"shares its stem with {paths[0].name}; {rule}")
        for paths in (*first.values(), *second.values())
        for path in paths[1:]
    ]
    for own, other, kind in ((first, second, kinds[1]), (second, first, kinds[0])):
        problems += [Problem(own[key][0], f"has no {kind}; {rule}") for key in sorted(own.keys() - other.keys())]
    return [(first[key][0], second[key][0]) for key in sorted(first.keys() & second.keys())], problems
