"""Find the files of a data set that no sample uses, such as images in other folders or formats."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

from ..images.folders import NO_IMAGE, Entry, describe_skipped, entries_below

#: Suffixes of files that describe or contain samples, or that belong to no sample.
_DOCUMENTS = frozenset(
    (".yaml", ".yml", ".json", ".txt", ".csv", ".tsv", ".xml", ".md", ".rst", ".html", ".pdf", ".log", ".cache", ".tar")
)


def note_unused(root: Path, used: Set[Path], labels: Set[Path]) -> str:
    """A note that counts and names the files that are not read; empty if there are none.

    Args:
        root: folder of the data set.
        used: files of all samples, and files with problems.
        labels: folders with labels as images. Other images in them are not noted: data sets keep several kinds of masks
            next to each other.
    """
    unused = []
    for entry in entries_below(root):
        if entry.path in used or entry.path.suffix.lower() in _DOCUMENTS:
            continue
        if entry.skipped or entry.path.parent not in labels:
            unused.append(entry if entry.skipped else Entry(entry.path, NO_IMAGE))
    return describe_skipped(root, unused) if unused else ""
