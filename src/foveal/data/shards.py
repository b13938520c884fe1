"""Find tar files of samples, in a folder or by a pattern, for example ``DATA/train-{0000..0146}.tar``."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable
from pathlib import Path

from ..errors import DataError
from .layout import SPLIT_NAMES, DatasetFile, describe, draw_splits, subfolders

_MAX_RANGE = 1_000_000  # files that one range in braces may expand to


def find_shards(data: str | Path) -> tuple[Path, DatasetFile, dict[str, list[Path]]]:
    """The folder of a data set, its ``dataset.yaml``, and its tar files by split (empty if there are no tar files).

    Args:
        data: a folder (ROOT/<split>/*.tar, ROOT/<split>-*.tar or ROOT/*.tar), a tar file, or a pattern of tar files
            with ``*``, ``?``, ``{a,b}`` and ``{000..123}``. Splits of the files that match a pattern are inferred from
            their paths in the same way.

    Raises:
        DataError: the folder or a file does not exist, or a range in braces is invalid.
    """
    root = Path(data)
    if is_pattern(data):
        paths = _expand_pattern(str(data))
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
    by_split: dict[str, list[Path]] = {}
    unsplit: list[Path] = []
    for path in paths:
        folder, *rest = path.relative_to(root).parts
        split = folder if rest else re.split(r"[-_.]", path.name)[0]
        if rest or split in SPLIT_NAMES:
            by_split.setdefault(split, []).append(path)
        else:
            unsplit.append(path)
    if by_split or not unsplit:
        return by_split
    drawn = draw_splits((path.name for path in unsplit), described)
    return {split: [path for path in unsplit if path.name in names] for split, names in drawn.items() if names}


def _expand_pattern(pattern: str) -> list[Path]:
    """The files that match a pattern, each once."""
    files: list[Path] = []
    for text in expand_braces(pattern):
        paths = sorted(Path(path) for path in glob.glob(text))
        if not paths:
            raise DataError(f"{text}: no such tar file")
        files += paths
    return list(dict.fromkeys(files))


def expand_braces(pattern: str, most: int = _MAX_RANGE) -> list[str]:
    """Expand ``{a,b}`` and ``{000..123}`` as shells do, to at most ``most`` texts.

    Raises:
        DataError: a range that falls or is too long.
    """
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if not braces:
        return [pattern]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", braces[1])
    if span:
        first, last = int(span[1]), int(span[2])
        if not 0 <= last - first < most:
            raise DataError(f"{pattern}: {braces[0]} is no rising range of at most {_MAX_RANGE:,} files")
        choices = [f"{number:0{len(span[1])}}" for number in range(first, last + 1)]
    else:
        choices = braces[1].split(",")
    most //= len(choices)
    return [
        text
        for choice in choices
        for text in expand_braces(pattern[: braces.start()] + choice + pattern[braces.end() :], most)
    ]
