"""Read the headers of tar files: which members belong to samples, and what no tar file of samples contains.

Sizes in headers are what the file claims. They are checked before anything is read or skipped by them, so that a small
file cannot take long or much memory.
"""

from __future__ import annotations

import lzma
import struct
import tarfile
import zlib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from ..errors import DataError
from ..images.formats import MAX_FILE_BYTES

IMAGE_ENDINGS = ("jpg", "jpeg", "jfif", "jpe", "webp", "png", "tif", "tiff", "bmp", "npy")
MASK_ENDINGS = ("mask.png", "seg.png", "png")

T = TypeVar("T")

#: What tarfile raises on damaged files.
DAMAGE = (
    tarfile.TarError, OSError, EOFError, ValueError, OverflowError, IndexError, RecursionError, MemoryError,
    struct.error, zlib.error, lzma.LZMAError,
)  # fmt: skip
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")  # first bytes of gzip, bzip2, xz, zstd
_KNOWN_ENDINGS = (*MASK_ENDINGS, *(ending for ending in IMAGE_ENDINGS if ending not in MASK_ENDINGS), "cls", "json")
_MOST = 64  # members of one sample
_LONG_NAMES = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_MAX_NAME = 1 << 20  # bytes of the names and attributes of one member, which tarfile reads at once


class _Header(tarfile.TarInfo):
    """A header whose size is possible."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        header = super().frombuf(buf, encoding, errors)
        limit = _MAX_NAME if header.type in _LONG_NAMES else 1 << 62
        if not 0 <= header.size <= limit:
            raise ValueError(f"{header.name[:100]} has an impossible size of {header.size} bytes")
        return header

    def _proc_gnusparse_10(self, *_: Any) -> NoReturn:  # tarfile would first read a map of any length
        raise ValueError("a sparse file")


def open_tar(file: Any, mode: Any) -> tarfile.TarFile:
    """Open a tar file by its path, or an open file."""
    if isinstance(file, Path):
        return tarfile.open(file, mode, tarinfo=_Header)
    return tarfile.open(fileobj=file, mode=mode, tarinfo=_Header)


def read_members(archive: tarfile.TarFile, size: int | None) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """The members of samples in order, each with its path up to the first dot and what follows the dot.

    Args:
        archive: an open tar file.
        size: number of its bytes; ``None`` if it is compressed.

    Raises:
        ValueError: a member ends after the file, or is sparse.
        Others of DAMAGE: the file is damaged.
    """
    while (member := archive.next()) is not None:
        archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue] (saves memory: nobody reads the list)
        name = member.name[:100]
        if member.issparse():
            raise ValueError(f"{name} is a sparse file; pack it as an ordinary one")
        end = member.offset_data + member.size
        if member.isfile() and (end > size if size is not None else member.size > MAX_FILE_BYTES):
            above = f"is above the limit of {MAX_FILE_BYTES >> 20} MiB: it " if member.size > MAX_FILE_BYTES else ""
            raise ValueError(f"{name} {above}has {member.size} bytes by its header, more than the file")
        if member.size < 0:
            raise ValueError(f"{name} has a negative size by its header")
        key, ending = _sample_of(member)
        if key:
            yield key, ending, member


def image_ending(endings: Collection[str], masks: bool) -> str | None:
    """Which member of a sample is its image; ``None``: there is none.

    Args:
        endings: of all members.
        masks: whether samples have masks: a PNG beside another image is its mask then, if nothing else is.
    """
    found = [ending for ending in IMAGE_ENDINGS if ending in endings]
    if masks and len(found) > 1 and not any(ending in endings for ending in MASK_ENDINGS if ending != "png"):
        found = [ending for ending in found if ending != "png"]
    return found[0] if found else None


def by_sample(members: Iterable[tuple[str, str, T]]) -> Iterator[tuple[str, str, T]]:
    """Find the sample that each member belongs to: ``(path up to the first dot, rest, ...) -> (key, ending, ...)``.

    The key is the path up to the first dot, as in the webdataset library. If no member of such a sample is an image
    (``2026.01.31.jpg`` has the ending ``01.31.jpg``), names have dots, and the key is what precedes a known ending.
    """
    waiting: list[tuple[str, str, T]] = []  # of one path, until it is known whether names have dots
    current, decided = "", False  # the path, and whether it is known
    for member in members:
        if member[0] != current:
            yield from _with_dots(waiting)
            waiting, current, decided = [], member[0], False
        waiting.append(member)
        decided = decided or member[1].lower() in IMAGE_ENDINGS
        if decided:
            yield from ((stem, rest.lower(), more) for stem, rest, more in waiting)
            waiting = []
        elif len(waiting) == _MOST:
            yield from _with_dots(waiting)
            waiting, current = [], ""
    yield from _with_dots(waiting)


def _with_dots(members: Iterable[tuple[str, str, T]]) -> Iterator[tuple[str, str, T]]:
    """The members with the keys and endings of names that have dots."""
    key = ""
    for stem, rest, more in members:
        name = f"{stem}.{rest}"
        known = next((ending for ending in _KNOWN_ENDINGS if name.lower().endswith(f".{ending}")), None)
        if known is not None:
            key = name[: -len(known) - 1]
            yield key, known, more
        elif key and name.startswith(f"{key}."):
            yield key, name[len(key) + 1 :].lower(), more
        else:
            yield stem, rest.lower(), more


def _sample_of(member: tarfile.TarInfo) -> tuple[str, str]:
    """A member's path up to the first dot, and what follows; two empty strings for folders and hidden files.

    Links and devices belong to a sample if they have the ending of an image or of its label.
    """
    folder, _, name = member.name.rpartition("/")
    stem, _, ending = name.partition(".")
    labelled = ending.lower() in (*IMAGE_ENDINGS, *MASK_ENDINGS, "cls")
    if not stem or not (member.isfile() or (labelled and not member.isdir())):
        return "", ""
    return f"{folder}/{stem}" if folder else stem, ending


def check_member(shard: Path, member: tarfile.TarInfo) -> None:
    """Check that the content of a member can be read.

    Raises:
        DataError: it is too large, or no file.
    """
    if not member.isfile():
        kind = "a link" if member.issym() or member.islnk() else "a device"
        raise DataError(f"{shard}: {member.name} is {kind}; pack the file itself (tar --dereference)")
    if member.size > MAX_FILE_BYTES:
        raise DataError(f"{shard}: {member.name} is above the limit of {MAX_FILE_BYTES >> 20} MiB")


def damaged_error(shard: Path, key: str, error: Exception) -> DataError:
    """The error for a shard that is unreadable after sample ``key``."""
    hint = "; compressed files must be unpacked first" if not key and is_compressed(shard) else ""
    return DataError(f"{shard}: damaged or truncated after {key or 'its start'} ({error}){hint}")


def check_end(shard: Path, offset: int) -> None:
    """Check that an uncompressed tar file ends at ``offset``, with the block of zeros that marks the end.

    Python's tarfile takes a damaged or truncated header for the end, and would silently skip all samples after it.

    Raises:
        ValueError: there is no such block.
    """
    if is_compressed(shard):
        return  # compressed formats have checksums of their own
    with shard.open("rb") as file:
        file.seek(offset)
        check_end_block(file.read(tarfile.BLOCKSIZE))


def check_end_block(block: bytes) -> None:
    """Check that the block after the last member is the one of zeros that marks the end.

    Raises:
        ValueError: it is not, so that members may follow that nobody has seen.
    """
    if len(block) < tarfile.BLOCKSIZE:
        raise ValueError("no end-of-archive block")
    if any(block):
        raise ValueError("bad header")


def is_compressed(shard: Path) -> bool:
    """Whether a file begins as gzip, bzip2, xz or zstd does."""
    try:
        with shard.open("rb") as file:
            return file.read(6).startswith(_COMPRESSED)
    except OSError:
        return False
