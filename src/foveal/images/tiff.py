"""The tags of TIFF files with any number of bands (TIFF 6.0, BigTIFF)."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image, TiffImagePlugin

from ..errors import InputError

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}  # types of tags, as struct names them
_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3, 9: 3}  # bands of each photometric interpretation
_PALETTE = 3
OTHER_COLOURS = (5, 8, 9, 10)  #: photometric interpretations: CMYK, and three kinds of L*a*b*
_ALPHA = (1, 2)  # values of ExtraSamples: associated and unassociated alpha
_UNPACKED = (1, 5, 8, 32773, 32946, 34925, 50000)  # none, LZW, deflate, run lengths, deflate, LZMA, Zstandard
_TYPES = {
    (1, 8): "u1", (1, 16): "u2", (2, 8): "i1", (2, 16): "i2", (3, 16): "f2", (3, 32): "f4", (3, 64): "f8",
}  # fmt: skip
JPEG_TABLES = 347
NODATA = 42113  #: GDAL's tag of the value, as text, of pixels without data
_MAX_PAGES = 4096
_RAW_BYTES = 16 << 20  # of one tag that is copied
_TAG_BYTES = 64 << 20  # content of all tags that is read, unless the file is larger


class TiffReader(TiffImagePlugin.TiffImageFile):
    """Pillow's TIFF reader without its pixel limit, which is global to the process; ours is checked before."""

    def load_prepare(self) -> None:
        if getattr(self, "_im", None) is None:
            self.im = Image.new(self.mode, getattr(self, "_tile_size", self.size), None).im
        super().load_prepare()


@dataclass(frozen=True)
class Page:
    """One image of a TIFF file, from its tags.

    Attributes:
        tags: integer values by the number of the tag, see :func:`pages`.
        order: byte order, "<" or ">".
        offset: position of its directory in the file.
    """

    tags: dict[int, tuple[int, ...]]
    order: str
    offset: int = 0

    def first(self, tag: int, default: int = 0) -> int:
        """The first value of a tag."""
        return (self.tags.get(tag) or (default,))[0]

    @property
    def size(self) -> tuple[int, int]:
        """(W, H) as stored, before the orientation is applied."""
        return self.first(256), self.first(257)

    @property
    def bands(self) -> int:
        """Number of bands."""
        return self.first(277, 1)

    @property
    def dtype(self) -> str:
        """Type of the values as NumPy writes it, with the byte order; empty: bands of several types, or another one."""
        bits, formats = set(self.tags.get(258, (1,))), set(self.tags.get(339, (1,)))
        kind = _TYPES.get((formats.pop(), bits.pop()), "") if len(bits) == len(formats) == 1 else ""
        return kind and self.order + kind

    @property
    def has_lost_bands(self) -> bool:
        """Whether a picture of grey or colours, with or without alpha, would lack some of the bands."""
        extra, colours = self.tags.get(338, ()), _COLOURS.get(self.first(262), 1)
        has_alpha = colours < 4 and len(extra) == 1 and extra[0] in _ALPHA
        # Pillow does not read these kinds of alpha.
        unread = self.first(284, 1) == 2 and (colours == 1 or extra[:1] == (1,))
        has_alpha &= not (unread or (colours == 1 and self.first(258, 1) != 8))
        return self.bands > colours + has_alpha

    def describe(self) -> str:
        """Number and kind of the bands, for messages."""
        known = {2: "red, green, blue", 5: "cyan, magenta, yellow, black"}.get(self.first(262), "")
        named = f" ({known} and {self.bands - _COLOURS[self.first(262)]} more)" if known else ""
        bits = "/".join(map(str, sorted(set(self.tags.get(258, (1,))))))
        return f"{self.bands} bands{named} of {bits} bits"

    @property
    def is_plain(self) -> bool:
        """Whether :func:`~.tiff_pixels.read_page` reads the page: no palette, no lossy compression."""
        fits = self.first(262) not in (_PALETTE, 6) and self.first(266, 1) == 1
        return fits and self.first(259, 1) in _UNPACKED and self.dtype != ""

    @property
    def is_jpeg(self) -> bool:
        """Whether the blocks of the page are JPEG streams of grey, RGB or luma and chroma, 8 bits each."""
        kind = self.first(259, 1) == 7 and self.first(284, 1) == 1 and set(self.tags.get(258, ())) == {8}
        return kind and (self.first(262), self.bands) in ((1, 1), (2, 3), (6, 3))


def pages(file: BinaryIO, name: str, *, strict: bool = True) -> list[Page]:
    """The pages of a TIFF file without previews and transparency masks, from its tags; the file's position is kept.

    Args:
        file: the file.
        name: its name, for messages.
        strict: whether damage after the first page is an error; otherwise the list ends there.

    Raises:
        InputError: damaged tags, tags that claim far more data than the file has, or too many pages.
        struct.error: damaged tags, too.
    """
    position, found, read = file.tell(), list[Page](), 0
    try:
        for page in _directories(file, name):
            read += 1
            found += [] if page.first(254) & 5 else [page]
    except (InputError, struct.error):
        if strict or not read:
            raise
    finally:
        file.seek(position)
    return found


def is_stack(found: Sequence[Page]) -> bool:
    """Whether the pages of a file are the bands of one image: grey pages of one size and type."""
    kinds = {(page.bands, page.size, page.dtype) for page in found}
    return len(found) > 1 and len(kinds) == 1 and found[0].bands == 1 and bool(found[0].dtype)


def first_page(file: BinaryIO, name: str) -> Page | None:
    """The first image of a TIFF file; ``None`` if it has none. The file's position is not kept.

    Raises:
        InputError, struct.error: as :func:`pages`.
    """
    return next(_directories(file, name), None)


def levels(file: BinaryIO, name: str) -> list[Page]:
    """The first page of a TIFF file and its previews: smaller versions of it, as pyramids and overviews are stored.

    Raises:
        InputError, struct.error: as :func:`pages`.
    """
    position, found = file.tell(), list[Page]()
    try:
        for page in _directories(file, name):
            kind = page.first(254)
            if found and not kind & 5:  # the next image
                break
            if not kind & 4 and (not found or page.size < found[-1].size):
                found.append(page)
    finally:
        file.seek(position)
    return found


def page_of(image: TiffImagePlugin.TiffImageFile) -> Page:
    """The page that Pillow has opened."""
    tags: dict[int, tuple[int, ...]] = {}
    for tag in (258, 262, 277, 338):
        value = image.tag_v2.get(tag, ())
        tags[tag] = tuple(value) if isinstance(value, tuple) else (value,)
    return Page(tags, "<")


def _directories(file: BinaryIO, name: str) -> Iterator[Page]:
    length = file.seek(0, io.SEEK_END)
    order, big, offset = _header(file)
    seen: set[int] = set()
    while offset and offset not in seen:
        if len(seen) == _MAX_PAGES:
            raise InputError(f"{name}: more than {_MAX_PAGES} pages in one file; save them as files of their own")
        seen.add(offset)
        tags, following = _read_directory(file, name, offset, length, order, big)
        yield Page(tags, order, offset)
        offset = following


def _header(file: BinaryIO) -> tuple[str, bool, int]:
    """Byte order, whether it is a BigTIFF, and the position of the first directory."""
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = struct.unpack(order + "H", head[2:4])[0] == 43
    return order, big, struct.unpack(order + ("Q" if big else "I"), head[8:16] if big else head[4:8])[0]


def _read_directory(
    file: BinaryIO, name: str, offset: int, length: int, order: str, big: bool
) -> tuple[dict[int, tuple[int, ...]], int]:
    """The integer tags of one directory, and the position of the next one."""
    word, entry, count_kind = ("Q", 20, "Q") if big else ("I", 12, "H")
    inline = struct.calcsize(word)
    file.seek(offset)
    (count,) = struct.unpack(order + count_kind, file.read(struct.calcsize(count_kind)))
    if count > 1 << 16:
        raise InputError(f"{name}: damaged ({count} tags)")
    rows, tail = file.read(count * entry), file.read(inline)
    if _claimed(rows, length, order, big) > max(_TAG_BYTES, 2 * length):
        raise InputError(f"{name}: its tags claim far more data than the file has")
    tags: dict[int, tuple[int, ...]] = {}
    for start in range(0, len(rows) - entry + 1, entry):
        tag, kind, number = struct.unpack_from(f"{order}HH{word}", rows, start)
        size = number * _SIZES.get(kind, 0)
        if kind not in _INTEGERS or not number or (number > 1 << 16 and tag not in (273, 279, 324, 325)):
            continue
        data = rows[start + 4 + inline : start + entry]
        if size > inline:
            file.seek(struct.unpack(order + word, data)[0])
            data = file.read(min(size, length))
        if len(data) < size:
            raise InputError(f"{name}: damaged or truncated (the data of tag {tag} is missing)")
        tags[tag] = struct.unpack_from(f"{order}{number}{_INTEGERS[kind]}", data)
    return tags, struct.unpack(order + word, tail)[0] if len(tail) == inline else 0


@dataclass(frozen=True)
class RawTag:
    """A tag as it is stored: number of its type, number of values, and these in little-endian order."""

    kind: int
    count: int
    data: bytes


def raw_tags(file: BinaryIO, name: str, wanted: Iterable[int], offset: int = 0) -> dict[int, RawTag]:
    """The tags of these numbers in a directory of a TIFF file, to be written again unchanged.

    Args:
        file: the file.
        name: its name, for messages.
        wanted: numbers of tags.
        offset: position of the directory, :attr:`Page.offset`; 0: the first one.

    Raises:
        InputError, struct.error: damaged.
    """
    length = file.seek(0, io.SEEK_END)
    order, big, first = _header(file)
    word, entry, count_kind = ("Q", 20, "Q") if big else ("I", 12, "H")
    inline = struct.calcsize(word)
    file.seek(offset or first)
    (count,) = struct.unpack(order + count_kind, file.read(struct.calcsize(count_kind)))
    rows, found, chosen = file.read(min(count, 1 << 16) * entry), dict[int, RawTag](), set(wanted)
    for start in range(0, len(rows) - entry + 1, entry):
        tag, kind, number = struct.unpack_from(f"{order}HH{word}", rows, start)
        if tag not in chosen or kind not in _SIZES:
            continue
        data, size = rows[start + 4 + inline : start + entry], number * _SIZES[kind]
        if size > min(length, _RAW_BYTES):
            raise InputError(f"{name}: damaged (tag {tag} claims {size} bytes)")
        if size > inline:
            file.seek(struct.unpack(order + word, data)[0])
            data = file.read(size)
        width = {5: 4, 10: 4}.get(kind, _SIZES[kind])
        values = np.frombuffer(data[:size], f"{order}u{width}")
        found[tag] = RawTag(kind, number, values.astype(f"<u{width}").tobytes())
    return found


def _claimed(rows: bytes, length: int, order: str, big: bool) -> int:
    """Bytes that a reader of every tag of a directory reads from a file of ``length``."""
    word, entry = ("Q", 20) if big else ("I", 12)
    found = (struct.unpack_from(f"{order}HH{word}", rows, start) for start in range(0, len(rows) - entry + 1, entry))
    return sum(min(number * _SIZES.get(kind, 0), length) for _, kind, number in found)


def check_exif(exif: bytes) -> None:
    """Check EXIF data, which has the form of a TIFF file, before Pillow reads all of its tags; damage is left to it.

    Raises:
        ValueError: its tags claim far more data than there is.
    """
    content = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(content[:4], "")
    if not order or len(content) < 8:
        return
    (start,) = struct.unpack_from(f"{order}I", content, 4)
    count = int.from_bytes(content[start : start + 2], "little" if order == "<" else "big")
    if _claimed(content[start + 2 : start + 2 + 12 * count], len(content), order, False) > _TAG_BYTES:
        raise ValueError("the tags of its EXIF data claim far more data than there is")
