"""TIFF files with any number of bands (TIFF 6.0, BigTIFF): their tags, and their values.

Pillow decodes at most four bands and drops those that it does not know. Here its libtiff only unpacks the compressed
bytes of each plane, as if they were the grey values of a wider image; the bands are then taken from these bytes.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin, TiffImagePlugin

from ..errors import InputError

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}  # types of tags, as struct names them
_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3, 9: 3}  # bands of each photometric interpretation
_PALETTE = 3
_ALPHA = (1, 2)  # values of ExtraSamples: associated and unassociated alpha
_UNPACKED = (1, 5, 8, 32773, 32946, 34925, 50000)  # none, LZW, deflate, run lengths, deflate, LZMA, Zstandard
_TYPES = {
    (1, 8): "u1", (1, 16): "u2", (2, 8): "i1", (2, 16): "i2", (3, 16): "f2", (3, 32): "f4", (3, 64): "f8",
}  # fmt: skip
JPEG_TABLES = 347
NODATA = 42113  #: GDAL's tag of the value, as text, of pixels without data
_MAX_PAGES = 4096
_RAW_BYTES = 16 << 20  # of one tag that is copied
_BLOCK_VALUES = 1 << 28  # of one tile or strip
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
        """Whether :func:`read_page` reads the page: no palette, no lossy compression."""
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


def read_page(content: bytes, page: Page, name: str) -> NDArray[Any]:
    """The values of a page, ``(H, W, C)`` in the type of the file, upright.

    Args:
        content: of the whole file.
        page: a plain one, whose size was checked.
        name: of the file, for messages.

    Raises:
        InputError: damaged.
        OSError, ValueError: the same, from the decoder.
    """
    separate = page.first(284, 1) == 2
    offsets, counts = (page.tags.get(324) or page.tags.get(273, ())), (page.tags.get(325) or page.tags.get(279, ()))
    planes = page.bands if separate else 1
    if not offsets or len(offsets) != len(counts) or len(offsets) % planes:
        raise InputError(f"{name}: damaged (the places of its pixels are missing)")
    part = len(offsets) // planes
    parts = [
        _read_plane(content, page, 1 if separate else page.bands, offsets[i : i + part], counts[i : i + part])
        for i in range(0, len(offsets), part)
    ]
    values = np.concatenate(parts, axis=2) if separate else parts[0]
    if page.first(262, 1) == 0 and page.bands == 1 and values.dtype.kind == "u":  # 0 is white
        values = np.iinfo(values.dtype).max - values
    return values


class Blocks:
    """The tiles or strips of a page, which are decoded one by one.

    Args:
        page: a plain one, or of JPEG.
        name: of the file, for messages.
        tables: content of the tag :data:`JPEG_TABLES`; empty: each block has its own.

    Attributes:
        height, width: of a block, in pixels; those at the bottom and right reach to the end of the page only.
    """

    def __init__(self, page: Page, name: str, tables: bytes = b"") -> None:
        self.page, self.name, self._tables = page, name, tables
        wide, high = page.size
        if not wide or not high:
            raise InputError(f"{name}: damaged (an image without pixels)")
        self.width, self.height = page.first(322) or wide, page.first(323) or min(page.first(278, high), high)
        self._across, self._down = -(-wide // self.width), -(-high // self.height)
        self._planes = page.bands if page.first(284, 1) == 2 else 1
        self._offsets = page.tags.get(324) or page.tags.get(273, ())
        self._counts = page.tags.get(325) or page.tags.get(279, ())
        expected = self._across * self._down * self._planes
        if not expected or {len(self._offsets), len(self._counts)} != {expected}:
            raise InputError(f"{name}: damaged (the places of its pixels are missing)")
        if self.height * self.width * page.bands > _BLOCK_VALUES:
            raise InputError(
                f"{name}: stored in blocks of {self.width}x{self.height} pixels, too large to read in windows: convert "
                "it to tiles"
            )

    def read(self, file: BinaryIO, row: int, column: int) -> NDArray[Any]:
        """The values of a block, ``(h, w, bands)``."""
        wide, high = self.page.size
        height = min(self.height, high - row * self.height)
        width = min(self.width, wide - column * self.width)
        bands = self.page.bands // self._planes
        planes = []
        for plane in range(self._planes):
            index = (plane * self._down + row) * self._across + column
            planes.append(self._plane(file, index, bands, height)[:height, :width])
        values = np.concatenate(planes, axis=2) if len(planes) > 1 else planes[0]
        if self.page.first(262, 1) == 0 and self.page.bands == 1 and values.dtype.kind == "u":  # 0 is white
            values = np.iinfo(values.dtype).max - values
        return np.ascontiguousarray(values)

    def _plane(self, file: BinaryIO, index: int, bands: int, height: int) -> NDArray[Any]:
        """One plane of a block, as a file of its own for the decoder."""
        offset, count = self._offsets[index], self._counts[index]
        if not count:  # a block that was never written
            return np.zeros((self.height, self.width, bands), np.dtype(self.page.dtype).newbyteorder("="))
        file.seek(offset)
        packed = file.read(min(count, _BLOCK_VALUES * 16))
        if len(packed) < count:
            raise InputError(f"{self.name}: damaged or truncated (pixels are missing)")
        tiled = 324 in self.page.tags
        rows = self.height if tiled else height
        if self.page.is_jpeg:
            return _decode_jpeg(packed, self._tables, self.page, (self.width, rows), self.name)
        tags = {key: value for key, value in self.page.tags.items() if key not in (273, 279, 322, 323, 324, 325)}
        tags |= {256: (self.width,), 257: (rows,), 278: (rows,)}
        if tiled:
            tags |= {322: (self.width,), 323: (rows,), 324: (8,)}
        return _read_plane(bytes(8) + packed, Page(tags, self.page.order), bands, (8,), (count,))


def _decode_jpeg(packed: bytes, tables: bytes, page: Page, size: tuple[int, int], name: str) -> NDArray[np.uint8]:
    """A block of JPEG (Adobe Photoshop TIFF Technical Note 2): its tables are in a tag, its colours in another."""
    # Adobe's marker says whether three channels are luma and chroma; without it decoders guess.
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64" + bytes(4) + bytes([page.first(262) == 6])
    stream = b"\xff\xd8" + adobe + tables[2:-2] + packed[2:]
    with JpegImagePlugin.JpegImageFile(io.BytesIO(stream), "") as image:
        if image.size != size or len(image.getbands()) != page.bands:
            raise InputError(f"{name}: damaged (a block of JPEG has another size or other bands)")
        return np.asarray(image).reshape(size[1], size[0], page.bands)


def _read_plane(
    content: bytes, page: Page, bands: int, offsets: tuple[int, ...], counts: tuple[int, ...]
) -> NDArray[Any]:
    """One plane, ``(H, W, bands)``: the bytes are unpacked, then the predictor is undone in each tile or strip."""
    (width, height), kind = page.size, np.dtype(page.dtype)
    tile_width, tile_height = page.first(322) or width, page.first(323) or height
    across, down = -(-width // tile_width), -(-height // tile_height)
    tiled = 324 in page.tags
    if tiled and across * down != len(offsets):
        raise InputError("wrong number of tiles")
    row = tile_width * bands * kind.itemsize
    entries = {256: across * row, 257: down * tile_height, 258: 8, 259: page.first(259, 1), 262: 1, 277: 1}
    if tiled:
        entries |= {322: row, 323: tile_height, 324: offsets, 325: counts}
    else:
        entries |= {273: offsets, 278: min(page.first(278, height), height), 279: counts}
    with TiffReader(io.BytesIO(_with_directory(content, entries)), "") as image:
        image.load()
        packed = np.asarray(image)
    values = _undo_predictor(packed.reshape(-1, across, row), page.first(317, 1), kind, bands)
    return np.ascontiguousarray(values.reshape(down * tile_height, across * tile_width, bands)[:height, :width])


def _with_directory(content: bytes, entries: dict[int, int | tuple[int, ...]]) -> bytes:
    """The file with another directory, at its end: a classic TIFF of little-endian 32-bit tags."""
    start = len(content) + len(content) % 2
    after = start + 2 + 12 * len(entries) + 4
    rows, arrays = b"", b""
    for tag, value in sorted(entries.items()):
        values = value if isinstance(value, tuple) else (value,)
        data = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            data, arrays = struct.pack("<I", after + len(arrays)), arrays + data
        rows += struct.pack("<HHI", tag, 4, len(values)) + data
    directory = struct.pack("<H", len(entries)) + rows + bytes(4) + arrays
    return b"".join((b"II*\0", struct.pack("<I", start), content[8:], bytes(start - len(content)), directory))


def _undo_predictor(packed: NDArray[np.uint8], predictor: int, kind: np.dtype, bands: int) -> NDArray[Any]:
    """Values ``(rows, tiles, pixels, bands)`` in native byte order from bytes ``(rows, tiles, bytes)``.

    Predictor 2 stores differences of neighbouring pixels; 3 those of the bytes of floating-point values, most
    significant bytes first (Adobe Photoshop TIFF Technical Note 3).
    """
    rows, tiles, _ = packed.shape
    if predictor == 3:
        summed = np.cumsum(packed.reshape(rows, tiles, -1, bands), axis=2, dtype=np.uint8)
        by_byte = summed.reshape(rows, tiles, kind.itemsize, -1)
        values = np.ascontiguousarray(by_byte.swapaxes(2, 3)).view(kind.newbyteorder(">"))
    elif predictor == 2:
        whole = np.dtype(f"{kind.byteorder}u{kind.itemsize}".replace("|", ""))
        values = packed.view(whole).reshape(rows, tiles, -1, bands)
        values = np.cumsum(values, axis=2, dtype=whole.newbyteorder("=")).view(kind.newbyteorder("="))
    elif predictor == 1:
        values = packed.view(kind)
    else:
        raise InputError(f"unknown predictor {predictor}")
    return values.astype(kind.newbyteorder("="), copy=False).reshape(rows, tiles, -1, bands)
