"""Where tar files of samples are: in a folder, or named by a pattern such as ``DATA/train-{0000..0146}.tar``."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable
from pathlib import Path

from ..errors import DataError
from .layout import SPLIT_NAMES, DatasetFile, describe, drawn_splits, subfolders

_MOST = 1_000_000  # files that one pair of braces may stand for


def find_shards(data: str | Path) -> tuple[Path, DatasetFile, dict[str, list[Path]]]:
    """The data set's folder, its description, and its tar files by split; no splits where there are no tar files.

    Args:
        data: a folder (ROOT/<split>/*.tar, ROOT/<split>-*.tar or ROOT/*.tar), a tar file, or a pattern of tar files
            with ``*``, ``?``, ``{a,b}`` and ``{000..123}``: those of the folder that it names, told apart likewise.

    Raises:
        DataError: no such folder or file; a range of braces that is not one.
    """
    root = Path(data)
    if is_pattern(data):
        paths = _named(str(data))
        root = Path(re.split(r"[*?{\[]", str(data))[0] + "x").parent  # the last folder before the first wildcard
        if root.name in SPLIT_NAMES:
            root = root.parent
    else:
        inside = [path for folder in subfolders(root) for path in sorted(folder.glob("*.tar"))]
        paths = inside + sorted(root.glob("*.tar"))
    described = describe(root)
    return root, described, _by_split(root, paths, described)


def is_pattern(data: str | Path) -> bool:
    """Whether ``data`` names tar files rather than a folder."""
    return str(data).endswith(".tar") and not Path(data).is_dir()


def _by_split(root: Path, paths: Iterable[Path], described: DatasetFile) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    unsplit: list[Path] = []
    for path in paths:
        folder, *rest = path.relative_to(root).parts
        split = folder if rest else re.split(r"[-_.]", path.name)[0]
        if rest or split in SPLIT_NAMES:
            found.setdefault(split, []).append(path)
        else:
            unsplit.append(path)
    if found or not unsplit:
        return found
    drawn = drawn_splits((path.name for path in unsplit), described)
    return {split: [path for path in unsplit if path.name in names] for split, names in drawn.items() if names}


def _named(pattern: str) -> list[Path]:
    found: list[Path] = []
    for text in _expanded(pattern):
        paths = sorted(Path(path) for path in glob.glob(text))
        if not paths:
            raise DataError(f"{text}: no such tar file")
        found += paths
    return list(dict.fromkeys(found))


def _expanded(pattern: str) -> list[str]:
    """Texts that the braces of ``pattern`` stand for, as shells write them."""
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if not braces:
        return [pattern]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", braces[1])
    if span:
        first, last = int(span[1]), int(span[2])
        if not 0 <= last - first < _MOST:
            raise DataError(f"{pattern}: {braces[0]} is no range of at most {_MOST:,} files")
        choices = [f"{number:0{len(span[1])}}" for number in range(first, last + 1)]
    else:
        choices = braces[1].split(",")
    return [
        text for choice in choices for text in _expanded(pattern[: braces.start()] + choice + pattern[braces.end() :])
    ]
