"""What all kinds of data sets share: ``dataset.yaml``, the names of splits, drawn splits, files by their stem."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..config import build_config, read_yaml
from ..errors import ConfigError, DataError, nearest
from ..imaging import is_image
from ..info import IGNORE

FILE = "dataset.yaml"
ALL = "all"  #: the one split of a data set that has no folders for splits
SAME_SPLITS = (("train", "training"), ("val", "valid", "validation"), ("test", "testing"))
SPLIT_NAMES = tuple(name for names in SAME_SPLITS for name in names)
IMAGE_FOLDERS = ("images", "image", "imgs", "img")
MASK_FOLDERS = ("masks", "mask", "annotations", "annotation", "labels", "label", "annot", "gt")


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

    def __post_init__(self) -> None:
        if not 0 <= self.val_share < 1:
            raise ConfigError(f"{FILE}: val_share={self.val_share} is out of range: a share from 0 to below 1")


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
        hint = f": it has no folders for splits. Write 'val_share: 0.1' into {FILE} to have train and val drawn"
    raise DataError(f"{root}: no split {wanted!r}{hint}")


def drawn_splits(names: Iterable[str], described: DatasetFile) -> dict[str, set[str]]:
    """Split ``names`` at random into "train" and "val", beside "all"; the same names and seed give the same draw.

    Neither the order of the names nor the machine matters: files are ranked by a hash of seed and name.
    """
    names = set(names)
    if not described.val_share:
        return {ALL: names}
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"{described.seed}/{name}".encode()).digest())
    count = min(max(1, round(len(ranked) * described.val_share)), len(ranked) - 1)
    return {"train": set(ranked[count:]), "val": set(ranked[:count]), ALL: names}


def subfolders(folder: Path) -> list[Path]:
    """Folders inside a folder, sorted; hidden ones left out; none where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))


def images_in(folder: Path) -> list[Path]:
    """Image files directly inside a folder, sorted; none where there is no such folder."""
    return sorted(p for p in folder.iterdir() if is_image(p) and p.is_file()) if folder.is_dir() else []
