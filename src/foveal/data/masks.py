"""Read mask files as class ids: by a table of ids, or by a palette of colours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, InputError
from ..images.reading import read_image, read_mask
from ..info import IGNORE, ignore_id
from .layout import FILE, DatasetFile

Colour = tuple[int, int, int]
MaskSource = Path | bytes  # path of a file, or content of a file
_IDS = 1 << 16  # ids from -1 to below this number can have a class
_SHOWN = 5  # number of unknown ids or colours in a message


class MaskReader(Protocol):
    """Reads the labels of one image: ``(image path, mask path) -> (H, W) uint8``, 255 = ignore.

    With more than 255 classes, masks are uint16, and 65535 is ignored."""

    def __call__(self, image: Path, mask: Path, /) -> NDArray[np.unsignedinteger]: ...


@dataclass(frozen=True)
class IdMasks:
    """Reader of masks of ids.

    Attributes:
        class_of: class of each known id; 255: ignored.
        num_classes: number of classes, for messages.
        ignore_unknown: whether unknown ids are ignored; otherwise the mask is refused.
        palette: colours of the classes if they are known, for messages.
    """

    class_of: Mapping[int, int]
    num_classes: int
    ignore_unknown: bool = False
    palette: tuple[Colour, ...] = ()

    def __call__(self, image: Path, mask: Path, /) -> NDArray[np.unsignedinteger]:
        """Read one mask.

        Raises:
            DataError: the mask is unreadable, is a colour image, or has unknown ids.
        """
        return self.read(mask, str(mask))

    def read(self, source: MaskSource, name: str) -> NDArray[np.unsignedinteger]:
        """Read a mask from a path or from the content of a file; ``name`` is its name in messages."""
        try:
            ids = read_mask(source, name=name)
        except InputError as error:
            raise DataError(f"{error}{self._colour_hint(source)}") from error
        table = np.full(_IDS + 1, -1, np.int32)
        table[list(self.class_of)] = list(self.class_of.values())  # id -1 is the last row
        in_range = (ids >= -1) & (ids < _IDS)
        classes = np.where(in_range, table[np.where(in_range, ids, 0)], -1)
        unknown = classes < 0
        if unknown.any() and not self.ignore_unknown:
            values, counts = np.unique(ids[unknown], return_counts=True)
            shown = ", ".join(f"{v} ({n} pixels)" for v, n in list(zip(values, counts, strict=True))[:_SHOWN])
            raise DataError(
                f"{name}: id {shown}, but there are {self.num_classes} classes; in {FILE}, give the id of each"
                " class as 'ids', list the id under 'ignore', or write 'unknown: ignore'"
            )
        return np.where(unknown, ignore_id(self.num_classes), classes).astype(mask_type(self.num_classes))

    def _colour_hint(self, source: MaskSource) -> str:
        """What to do if the mask is a colour image; empty if it is unreadable for another reason."""
        try:
            image = read_image(source)
        except InputError:
            return ""
        colours = _most_common(_codes(image))
        how = "the classes then follow from its palette" if self.palette else "and one colour per class as 'palette'"
        grey = " (if its equal channels are ids: save one of them)" if (image == image[..., :1]).all() else ""
        return f"; colours found: {colours}{grey}; for masks of colours write 'masks: colours' into {FILE}, {how}"


@dataclass(frozen=True)
class ColourMasks:
    """Reader of masks of colours.

    Attributes:
        palette: colour of each class.
        ignore: colours of ignored pixels.
        ignore_unknown: whether unknown colours are ignored; otherwise the mask is refused.
    """

    palette: tuple[Colour, ...]
    ignore: tuple[Colour, ...] = ()
    ignore_unknown: bool = False

    def __call__(self, image: Path, mask: Path, /) -> NDArray[np.unsignedinteger]:
        """Read one mask.

        Raises:
            DataError: the mask is unreadable, or has unknown colours.
        """
        return self.read(mask, str(mask))

    def read(self, source: MaskSource, name: str) -> NDArray[np.unsignedinteger]:
        """Read a mask from a path or from the content of a file; ``name`` is its name in messages."""
        try:
            pixels = _codes(read_image(source, name=name))
        except InputError as error:
            raise DataError(str(error)) from error
        known = [*self.palette, *self.ignore]
        codes = _codes(np.array([known], np.uint8))[0]
        ignore, kind = ignore_id(len(self.palette)), mask_type(len(self.palette))
        classes = np.array([*range(len(self.palette)), *[ignore] * len(self.ignore)], kind)
        order = np.argsort(codes)
        place = np.searchsorted(codes, pixels, sorter=order).clip(max=len(codes) - 1)
        unknown = codes[order][place] != pixels
        if unknown.any() and not self.ignore_unknown:
            raise DataError(
                f"{name}: colour {_most_common(pixels[unknown])} without a class; add it in {FILE} to 'palette' or"
                " 'ignore_colours', or write 'unknown: ignore'"
            )
        return np.where(unknown, ignore, classes[order][place]).astype(kind)


def mask_type(num_classes: int) -> type[np.unsignedinteger]:
    """The type of masks of so many classes: uint8, or uint16 for more than 255."""
    return np.uint8 if num_classes <= IGNORE else np.uint16


def plain_ids(num_classes: int, ignore: tuple[int, ...] = (IGNORE,)) -> dict[int, int]:
    """A table for ids that equal the classes; an id in ``ignore`` is ignored even if it is below ``num_classes``."""
    return {i: i for i in range(num_classes)} | dict.fromkeys(ignore, ignore_id(num_classes))


def described_ids(described: DatasetFile) -> dict[int, int]:
    """The table of ids that ``names``, ``ids`` and ``ignore`` of ``dataset.yaml`` describe."""
    count = len(described.names)
    if not described.ids:
        return plain_ids(count, described.ignored)
    return dict.fromkeys(described.ignored, ignore_id(count)) | {i: place for place, i in enumerate(described.ids)}


def note_black_and_white(reader: object, pixels: NDArray[np.int64], ignored: int) -> str:
    """A note if all labelled pixels have id 0 and the others are ignored, as in masks of 0 and 255; else empty.

    Args:
        reader: reader of the masks; nothing is noted for other readers than :class:`IdMasks`, and those that read grey
            masks with one, their attribute ``black_and_white``.
        pixels: number of pixels of each class in all masks.
        ignored: number of ignored pixels in all masks.
    """
    reader = getattr(reader, "black_and_white", reader)
    if not isinstance(reader, IdMasks) or not ignored or pixels.nonzero()[0].tolist() != [reader.class_of.get(0)]:
        return ""
    ids = sorted(i for i, place in reader.class_of.items() if place == IGNORE)
    what = f"have only {IGNORE} besides 0, and it is ignored; is it the class?"
    if ids != [IGNORE] or reader.ignore_unknown:
        what = f"have only ignored ids besides 0; is {IGNORE} one of them, and the class?"
    return f"the masks {what} Then write 'ids: [0, {IGNORE}]' and two 'names' into {FILE}"


def _codes(image: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Encode RGB colours as numbers, ``(..., 3) -> (...)``."""
    wide = image.astype(np.int32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def _most_common(codes: NDArray[np.int32]) -> str:
    """The most frequent colours and their numbers of pixels, for messages."""
    values, counts = np.unique(codes, return_counts=True)
    common = np.argsort(-counts, kind="stable")[:_SHOWN]
    return ", ".join(f"{_colour(int(values[i]))} ({counts[i]} pixels)" for i in common)


def _colour(code: int) -> Colour:
    return code >> 16, code >> 8 & 255, code & 255
