"""From a mask file to class ids: by a table of ids, or by a palette of colours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, InputError
from ..images.reading import read_image, read_mask
from ..info import IGNORE
from .layout import FILE

Colour = tuple[int, int, int]
MaskSource = Path | bytes  # of a file
_IDS = 1 << 16  # ids from -1 to below this can be named
_SHOWN = 5  # foreign ids or colours that a message names


class MaskReader(Protocol):
    """Reads the labels of one image: ``(image path, mask path) -> (H, W) uint8``, 255 = ignore."""

    def __call__(self, image: Path, mask: Path, /) -> NDArray[np.uint8]: ...


@dataclass(frozen=True)
class IdMasks:
    """Masks of ids.

    Attributes:
        class_of: class of each id that may occur; 255: left out.
        num_classes: for messages.
        ignore_unknown: leave other ids out instead of refusing them.
        palette: colours of the classes where they are known, for messages.
    """

    class_of: Mapping[int, int]
    num_classes: int
    ignore_unknown: bool = False
    palette: tuple[Colour, ...] = ()

    def __call__(self, image: Path, mask: Path, /) -> NDArray[np.uint8]:
        """Read one mask.

        Raises:
            DataError: unreadable, a colour image, or with ids that have no class.
        """
        return self.read(mask, str(mask))

    def read(self, source: MaskSource, name: str) -> NDArray[np.uint8]:
        """The same for a mask that need not be a file; ``name`` stands in messages."""
        try:
            ids = read_mask(source, name=name)
        except InputError as error:
            raise DataError(f"{error}{self._offer(source)}") from error
        table = np.full(_IDS + 1, -1, np.int16)
        table[list(self.class_of)] = list(self.class_of.values())  # id -1 has the last place
        inside = (ids >= -1) & (ids < _IDS)
        classes = np.where(inside, table[np.where(inside, ids, 0)], -1)
        foreign = classes < 0
        if foreign.any() and not self.ignore_unknown:
            values, counts = np.unique(ids[foreign], return_counts=True)
            found = ", ".join(f"{v} ({n} pixels)" for v, n in list(zip(values, counts, strict=True))[:_SHOWN])
            raise DataError(
                f"{name}: id {found}, but there are {self.num_classes} classes; name it in {FILE}, under 'names' or"
                " 'ignore', or write 'unknown: ignore'"
            )
        return np.where(foreign, IGNORE, classes).astype(np.uint8)

    def _offer(self, source: MaskSource) -> str:
        """What to do about a mask of colours; nothing where the mask is unreadable for another reason."""
        try:
            found = _most_common(_codes(read_image(source)))
        except InputError:
            return ""
        how = "its palette then tells the classes" if self.palette else "and one colour per class as 'palette'"
        return f"; colours found: {found}; for masks of colours write 'masks: colours' into {FILE}, {how}"


@dataclass(frozen=True)
class ColourMasks:
    """Masks of colours.

    Attributes:
        palette: colour of each class.
        ignore: colours that are left out.
        ignore_unknown: leave other colours out instead of refusing them.
    """

    palette: tuple[Colour, ...]
    ignore: tuple[Colour, ...] = ()
    ignore_unknown: bool = False

    def __call__(self, image: Path, mask: Path, /) -> NDArray[np.uint8]:
        """Read one mask.

        Raises:
            DataError: unreadable, or with colours that have no class.
        """
        return self.read(mask, str(mask))

    def read(self, source: MaskSource, name: str) -> NDArray[np.uint8]:
        """The same for a mask that need not be a file; ``name`` stands in messages."""
        try:
            found = _codes(read_image(source, name=name))
        except InputError as error:
            raise DataError(str(error)) from error
        known = [*self.palette, *self.ignore]
        codes = _codes(np.array([known], np.uint8))[0]
        classes = np.array([*range(len(self.palette)), *[IGNORE] * len(self.ignore)], np.uint8)
        order = np.argsort(codes)
        place = np.searchsorted(codes, found, sorter=order).clip(max=len(codes) - 1)
        foreign = codes[order][place] != found
        if foreign.any() and not self.ignore_unknown:
            raise DataError(
                f"{name}: colour {_most_common(found[foreign])} without a class; add it in {FILE} to 'palette' or"
                " 'ignore_colours', or write 'unknown: ignore'"
            )
        return np.where(foreign, IGNORE, classes[order][place]).astype(np.uint8)


def plain_ids(num_classes: int, ignore: tuple[int, ...] = (IGNORE,)) -> dict[int, int]:
    """Ids that are the classes themselves, and those left out (which win where both hold one)."""
    return {i: i for i in range(num_classes)} | dict.fromkeys(ignore, IGNORE)


def _codes(image: NDArray[np.uint8]) -> NDArray[np.int32]:
    """One number per RGB colour."""
    wide = image.astype(np.int32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def _most_common(codes: NDArray[np.int32]) -> str:
    """The colours that most pixels have, for a message."""
    values, counts = np.unique(codes, return_counts=True)
    common = np.argsort(-counts, kind="stable")[:_SHOWN]
    return ", ".join(f"{_colour(int(values[i]))} ({counts[i]} pixels)" for i in common)


def _colour(code: int) -> Colour:
    return code >> 16, code >> 8 & 255, code & 255
