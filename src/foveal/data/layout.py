"""Common parts of all data layouts: ``dataset.yaml``, names of splits, random splits, pairs of files by stem."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..config import build_config, read_yaml, shown
from ..errors import ConfigError, DataError, closest, nearest
from ..images.folders import images_below
from ..images.formats import is_image
from ..info import IGNORE, WIDE_IGNORE, Target

FILE = "dataset.yaml"
ALL = "all"  #: name of the split with all samples, if there are no folders for splits
SAME_SPLITS = (("train", "training"), ("val", "valid", "validation"), ("test", "testing"))
SPLIT_NAMES = tuple(name for names in SAME_SPLITS for name in names)
IMAGE_FOLDERS = ("images", "image", "imgs", "img")
MASK_FOLDERS = ("masks", "mask", "annotations", "annotation", "labels", "label", "annot", "gt")


_ARCHIVES = (".zip", ".7z", ".rar", ".gz", ".tgz", ".bz2", ".xz", ".zst")
_MAX_EXCLUDE = 256 << 20  # bytes of the list of files to leave out


class UnknownLayoutError(DataError):
    """The folder of a data set has none of the layouts that are possible."""


class Problem(NamedTuple):
    """A problem of a data set: the file or folder, and what is wrong with it."""

    file: Path
    error: str


def raise_first(problems: Sequence[Problem], root: Path) -> None:
    """Raise the first problem as a DataError that gives the number of the others; do nothing without problems."""
    if problems:
        more = f" (and {len(problems) - 1} more problems: foveal data check {root})" if len(problems) > 1 else ""
        raise DataError(f"{problems[0].file}: {problems[0].error}{more}")


@dataclass(frozen=True)
class DatasetFile:
    """Keys of ``dataset.yaml``; each is optional unless the layout needs it.

    Attributes:
        layout: name of the layout; empty: detected from the folders.
        names: one class name per id. They replace the classes of the layout; ids are then used without mapping.
        ids: id of each class in the masks, in the order of ``names``; empty: 0, 1, 2, ... A listed id is a class even
            if it is in ``ignore``, so ``ids: [0, 255]`` is for masks of black and white.
        palette: one (red, green, blue) per class; required for masks of colours.
        ignore: ids of pixels to ignore; 65535 by default if there are more than 255 names.
        masks: whether masks contain "ids" or "colours".
        ignore_colours: colours of pixels to ignore.
        unknown: ids or colours without a class: "error" refuses the mask, "ignore" ignores their pixels.
        val_share: for data without splits: share of the files that is drawn at random for "val"; the others are
            "train".
        seed: random seed of that draw.
        exclude: file with paths to leave out, one per line, relative to the data set (``foveal data check
            --quarantine`` writes one).
        dtype: type of the values of the images; empty: that of the first image, see :mod:`foveal.images.bands`.
        mean: mean of each band, for models that are trained on the data (``foveal data stats --write``); on the scale
            of :class:`~foveal.info.Preprocess`. Their number is the number of bands. Empty: computed, or ImageNet's.
        std: standard deviation of each band.
        target: for maps of values: the fields of :class:`~foveal.info.Target`, all of them optional.
    """

    layout: str = ""
    names: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    ignore: tuple[int, ...] = (IGNORE,)
    masks: Literal["ids", "colours"] = "ids"
    ignore_colours: tuple[tuple[int, int, int], ...] = ()
    unknown: Literal["error", "ignore"] = "error"
    val_share: float = 0.0
    seed: int = 0
    exclude: str = ""
    dtype: Literal["", "uint8", "uint16", "float32"] = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    target: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        build_config(Target, self.target, f"{FILE}: target")
        if len(self.mean) != len(self.std):
            raise ConfigError(f"{FILE}: {len(self.mean)} values of 'mean' but {len(self.std)} of 'std'; one per band")
        if not all(value > 0 for value in self.std):
            raise ConfigError(f"{FILE}: std={list(self.std)} is out of range: numbers above 0")
        if not 0 <= self.val_share < 1:
            raise ConfigError(f"{FILE}: val_share={self.val_share} is out of range: a share from 0 to below 1")
        if not all(-1 <= i < 1 << 16 for i in self.ignore):
            raise ConfigError(f"{FILE}: ignore={shown(self.ignore)}: ids are -1 to 65535")
        if len(set(self.names)) < len(self.names):
            duplicate = Counter(self.names).most_common(1)[0][0]
            raise ConfigError(f"{FILE}: two classes are called {shown(duplicate)}; give every class a name of its own")
        self._check_ids()
        for colour in (*self.palette, *self.ignore_colours):
            if not all(0 <= value <= 255 for value in colour):
                raise ConfigError(f"{FILE}: colour {shown(colour)}: red, green and blue are 0 to 255")
        if self.palette and self.names and len(self.palette) != len(self.names):
            raise ConfigError(
                f"{FILE}: {len(self.names)} names but {len(self.palette)} colours in the palette; give one per class"
            )
        if self.masks == "colours" and len(set(self.palette)) < len(self.palette):
            raise ConfigError(
                f"{FILE}: two classes share a colour of the palette; masks of colours need a different one for each"
            )

    def _check_ids(self) -> None:
        if not self.ids:
            return
        if self.masks == "colours":
            raise ConfigError(f"{FILE}: 'ids' is for masks of ids, 'masks: colours' for colours: leave one out")
        if len(self.ids) != len(self.names):
            raise ConfigError(f"{FILE}: {len(self.names)} names but {len(self.ids)} ids; give one id per name")
        if len(set(self.ids)) < len(self.ids) or not all(0 <= i < 1 << 16 for i in self.ids):
            raise ConfigError(f"{FILE}: ids: give different numbers from 0 to 65535, one per name")

    @property
    def ignored(self) -> tuple[int, ...]:
        """Ids of pixels to ignore, see :meth:`ignored_of`, for the classes of ``names``."""
        return self.ignored_of(len(self.names))

    def ignored_of(self, count: int) -> tuple[int, ...]:
        """Ids of pixels to ignore: ``ignore``, whose default is 65535 with more than 255 classes."""
        return (WIDE_IGNORE,) if self.ignore == (IGNORE,) and count > IGNORE else self.ignore

    def excluded(self, root: Path) -> frozenset[Path]:
        """The files to leave out.

        Raises:
            DataError: the file that ``exclude`` names cannot be read.
        """
        if not self.exclude:
            return frozenset()
        try:
            file = root / self.exclude
            if not file.is_file() or file.stat().st_size > _MAX_EXCLUDE:
                raise OSError(f"no file of at most {_MAX_EXCLUDE >> 20} MiB")
            lines = file.read_text("utf-8", errors="surrogateescape").splitlines()
        except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
            raise DataError(
                f"{root / FILE}: 'exclude' names {self.exclude[:200]}, which cannot be read ({error})"
            ) from error
        return frozenset(root / line.strip() for line in lines if line.strip())


def describe(root: Path) -> DatasetFile:
    """Read ``root/dataset.yaml``; without that file, the defaults.

    Raises:
        DataError: ``root`` is not a folder.
        ConfigError: the file has unknown keys, or values of a wrong type or range.
    """
    if not root.is_dir():
        raise DataError(f"{root}: {_why_no_folder(root)}")
    file = root / FILE
    if file.exists() and not file.is_file():
        raise ConfigError(f"{file}: not a regular file")
    return build_config(DatasetFile, read_yaml(file), str(file)) if file.exists() else DatasetFile()


def _why_no_folder(root: Path) -> str:
    """What a path is that is no folder, and what to do."""
    if root.is_file():
        packed = root.name.lower().endswith(_ARCHIVES)
        return "is an archive: unpack it first, and name the folder" if packed else "is a file: name its folder"
    with suppress(OSError):
        if found := closest(root.name, [folder.name for folder in subfolders(root.parent)]):
            return f"no such folder; did you mean {str(root.with_name(found))!r}?"
    return "no such folder"


def resolve_split(split: str, names: Sequence[str], root: Path) -> str:
    """Find a split under the name that ``root`` uses: "val" may also be called "valid" or "validation".

    Args:
        split: name of the split.
        names: names of the splits of the data set.
        root: folder of the data set, for messages.

    Raises:
        DataError: the data set has no such split.
    """
    synonyms = next((same for same in SAME_SPLITS if split in same), ())
    for name in (split, *synonyms):
        if name in names:
            return name
    hint = nearest(split, names)
    if len(names) == 1 and names[0] not in SPLIT_NAMES:
        hint = f", which has no splits; write 'val_share: 0.1' into {FILE} to draw train and val, or use {names[0]!r}"
    raise DataError(f"{root}: no split {split!r} in this folder{hint}")


def draw_splits(names: Iterable[str], described: DatasetFile) -> dict[str, set[str]]:
    """Split ``names`` at random into "train" and "val" if ``val_share`` is set; "all" has all of them.

    The files are ranked by a hash of seed and name, so the same names and seed give the same splits on any machine and
    for any order of the names.
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
    """Folders directly inside a folder, sorted, without hidden ones; empty if the folder does not exist."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))


def images_in(folder: Path, *, deep: bool = False) -> list[Path]:
    """Image files directly (``deep``: anywhere) inside a folder, sorted; empty if the folder does not exist."""
    if not folder.is_dir():
        return []
    return images_below(folder) if deep else sorted(p for p in folder.iterdir() if is_image(p) and p.is_file())


def by_stem(files: Iterable[Path], folder: Path, ending: str = "") -> dict[str, list[Path]]:
    """The files whose stem ends with ``ending``, by their path below ``folder`` without suffix and ending."""
    groups: dict[str, list[Path]] = {}
    for path in files:
        if path.stem.endswith(ending):
            key = path.relative_to(folder).with_suffix("").as_posix().removesuffix(ending)
            groups.setdefault(key, []).append(path)
    return groups


def match_files(
    first: Mapping[str, Sequence[Path]],
    seconds: Sequence[Mapping[str, Sequence[Path]]],
    kinds: tuple[str, str],
    excluded: frozenset[Path] = frozenset(),
) -> tuple[list[tuple[Path, Path]], list[Problem]]:
    """Pair files by stem.

    Args:
        first: files by stem (see :func:`by_stem`).
        seconds: groupings of the other files, one for each ending that they may have; the first grouping that has a
            stem in common with ``first`` is used.
        kinds: what the files of ``first`` and of ``seconds`` are, for messages.
        excluded: files to leave out; the partner of an excluded file is left out, too.

    Returns:
        The pairs, sorted; and a problem for every file without a partner or with the same stem as another.
    """
    second = next((groups for groups in seconds if first.keys() & groups.keys()), seconds[0])
    dropped = {key for groups in (first, second) for key, paths in groups.items() if excluded.issuperset(paths)}
    first, second = (
        {key: [p for p in paths if p not in excluded] for key, paths in groups.items() if key not in dropped}
        for groups in (first, second)
    )
    rule = "partners have the same stem"
    problems = [
        Problem(path, f"has the same stem as {paths[0].name}; {rule}")
        for paths in (*first.values(), *second.values())
        for path in paths[1:]
    ]
    for own, other, kind in ((first, second, kinds[1]), (second, first, kinds[0])):
        problems += [Problem(own[key][0], f"has no {kind}; {rule}") for key in sorted(own.keys() - other.keys())]
    return [(first[key][0], second[key][0]) for key in sorted(first.keys() & second.keys())], problems
