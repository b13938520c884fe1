"""Find the image files below a folder: links are followed, and what is left out is known."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from .formats import SUFFIXES, is_image

NO_IMAGE = "no image"  #: reason of a file whose suffix is not that of an image
_SHOWN = 5  # names in a message
_LOG = logging.getLogger(__name__)


class Entry(NamedTuple):
    """A file below a folder; hidden files and files in hidden folders are none.

    Attributes:
        path: path below the folder, with the names of links as they are.
        skipped: why it is not read; empty: it is an image.
    """

    path: Path
    skipped: str = ""


def entries_below(folder: Path) -> Iterator[Entry]:
    """All files below a folder, and links that lead nowhere or back; empty if the folder does not exist.

    A folder that several links lead to is read once: under its own name if that is below ``folder``.
    """
    seen: set[tuple[int, int]] = set()
    folders, links = deque([folder]), deque[Path]()
    while folders or links:
        is_link = not folders
        current = links.popleft() if is_link else folders.popleft()
        try:
            status = current.stat()
            if (status.st_dev, status.st_ino) in seen or (is_link and _leads_back(current)):
                yield Entry(current, "a link to a folder that is read already, or contains it")
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(current) as found:
                below = sorted(found, key=lambda entry: entry.name)
        except NotADirectoryError:
            continue
        except OSError as error:
            if current != folder or not isinstance(error, FileNotFoundError):
                yield Entry(current, f"cannot be read ({error.strerror})")
            continue
        for entry in below:
            if entry.name.startswith((".", "__MACOSX")):
                continue
            if _is(os.DirEntry.is_dir, entry):
                (links if entry.is_symlink() else folders).append(Path(entry.path))
            else:
                yield Entry(Path(entry.path), _reason(entry))


def _leads_back(link: Path) -> bool:
    """Whether a link leads to a folder that contains it, so that following it would never end, or leave the folder."""
    return link.parent.resolve().is_relative_to(link.resolve())


def _is(kind: Callable[[os.DirEntry[str]], bool], entry: os.DirEntry[str]) -> bool:
    try:
        return kind(entry)
    except OSError:  # a link that leads to itself
        return False


def _reason(entry: os.DirEntry[str]) -> str:
    if not _is(os.DirEntry.is_file, entry):
        return "a broken link" if entry.is_symlink() else "not a regular file"
    return "" if is_image(Path(entry.name)) else NO_IMAGE


def images_below(folder: Path) -> list[Path]:
    """The image files anywhere below a folder, sorted."""
    return sorted(entry.path for entry in entries_below(folder) if not entry.skipped)


def has_images(folder: Path) -> bool:
    """Whether there is an image anywhere below a folder."""
    return any(not entry.skipped for entry in entries_below(folder))


def list_images(source: str | Path) -> list[Path]:
    """List the image files below a folder, sorted; a path of a file gives that file.

    Files that are left out are counted and named in a warning of the log.

    Raises:
        InputError: ``source`` does not exist, or the folder contains no images.
    """
    source = Path(source)
    if not source.is_dir():
        if not source.exists():
            raise InputError(f"{source}: no such file or folder")
        return [source]
    entries = sorted(entries_below(source))
    skipped = [entry for entry in entries if entry.skipped]
    if len(skipped) == len(entries):
        found = f": {describe_skipped(source, skipped)}" if skipped else ""
        raise InputError(f"{source}: no images ({', '.join(SUFFIXES)}) in this folder{found}")
    if skipped:
        _LOG.warning("%s: %s", source, describe_skipped(source, skipped))
    return [entry.path for entry in entries if not entry.skipped]


def describe_skipped(folder: Path, skipped: list[Entry]) -> str:
    """The number of files that are left out, and the first names, those with a special reason first."""
    first = sorted(skipped, key=lambda entry: (entry.skipped == NO_IMAGE, entry.path))[:_SHOWN]
    names = ", ".join(
        f"{_shown(entry.path.relative_to(folder))}{'' if entry.skipped == NO_IMAGE else f' ({entry.skipped})'}"
        for entry in first
    )
    more = ", ..." if len(skipped) > _SHOWN else ""
    return f"{len(skipped)} {'file is' if len(skipped) == 1 else 'files are'} left out: {names}{more}"


def _shown(path: Path) -> str:
    """A path for messages, in quotes if it has control characters."""
    return str(path) if str(path).isprintable() else ascii(str(path))
