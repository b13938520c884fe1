"""Objects as polygons or run lengths: rasterise them within bounds, and draw them as one mask of classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, InputError
from ..images.bands import read_size
from ..images.regions import Runs, mask_tools, runs_of
from ..info import Labels, ignore_id
from .label_files import Id
from .layout import FILE, DatasetFile, Problem
from .masks import MaskReader, mask_type

BACKGROUND = "background"  #: class 0 of masks that are drawn from objects: pixels that no object covers
_BACKGROUNDS = (BACKGROUND, "_background_", "__background__")  # names that label tools export

_MAX_COORDINATE = 1e6  # pixels; a polygon with a corner further away is refused
_MAX_LENGTH = 2_000_000  # pixels along one polygon; pycocotools needs about 100 bytes for each
_MAX_LENGTHS = 10_000_000  # pixels along all polygons of an image, a matter of time
_MAX_OBJECTS = 10_000  # of one image
_MAX_COVER = 100  # times that the objects of an image cover it
_MAX_GROUPS = 7  # of five bits of a compressed run length

#: What a value of a wrong kind raises where annotations are read.
DAMAGE = (KeyError, TypeError, ValueError, IndexError, OverflowError)

Size = tuple[int, int]  # (H, W)
Box = tuple[float, float, float, float]
NO_RUNS: Runs = np.zeros(0, np.uint32)


class Outline(NamedTuple):
    """An object of an image.

    Attributes:
        name: for messages, for example "annotation 7" or "line 3".
        category: its class, as numbered in the data.
        runs: its pixels as run lengths; none if the file has only a box.
        box: x1, y1, x2, y2 if the file has them.
        area: in pixels if the file has it.
        iscrowd: whether it is a group of objects.
    """

    name: str
    category: Id
    runs: Runs = NO_RUNS
    box: Box | None = None
    area: float | None = None
    iscrowd: bool = False

    @property
    def has_pixels(self) -> bool:
        """Whether it covers at least one pixel."""
        return bool(self.runs[1::2].any())


OutlineReader = Callable[[Path, Path, Size], list[Outline]]  # arguments: image, file with its objects, (H, W)


@dataclass(frozen=True)
class OutlineMasks:
    """Reads class masks that are drawn from objects, ``(image path, path of the objects) -> (H, W) uint8``.

    Attributes:
        read: reads the objects.
        class_of: class by category.
        num_classes: number of classes, on which the type of the masks depends.
        ordered: whether later objects are in front of earlier ones; otherwise smaller ones are in front of larger ones.
    """

    read: OutlineReader
    class_of: Mapping[Id, int]
    num_classes: int = 0
    ordered: bool = False

    def __call__(self, image: Path, mask: Path, /) -> NDArray[np.unsignedinteger]:
        """Draw the objects of one image.

        Raises:
            DataError: an object is damaged or has an unknown category, or the image cannot be read.
            DependencyError: there are polygons, and pycocotools is not installed.
        """
        outlines, size = self.outlines(image, mask)
        return self.draw(outlines, size, f"{mask}: damaged annotation of {image.name}")

    def outlines(self, image: Path, file: Path) -> tuple[list[Outline], Size]:
        """The objects of one image, and its size; the errors are those of a call."""
        try:
            size = read_size(image)
        except InputError as error:
            raise DataError(str(error)) from error
        return self.read(image, file, size), size

    def draw(self, outlines: Sequence[Outline], size: Size, where: str) -> NDArray[np.unsignedinteger]:
        """Draw the objects one over the other. The pixels of boxes without outlines are ignored.

        Large ones come first, so that smaller ones in front stay complete, unless the objects are ``ordered``.

        Args:
            outlines: objects of one image.
            size: (H, W) of the image.
            where: beginning of messages.

        Raises:
            DataError: an object has an unknown category, or the objects cover the image too often.
        """
        columns = np.zeros(size[::-1], mask_type(self.num_classes))  # run lengths go down the columns
        layers: list[tuple[int, int, Runs]] = []
        for outline in outlines:
            if outline.category not in self.class_of:
                raise DataError(
                    f"{where} ({outline.name}: category {outline.category} is not in the list of categories)"
                )
            if len(outline.runs):
                layers.append((int(outline.runs[1::2].sum()), self.class_of[outline.category], outline.runs))
            elif outline.box is not None:
                x1, y1, x2, y2 = outline.box
                window = slice(max(0, int(x1)), max(0, int(x2 + 0.5))), slice(max(0, int(y1)), max(0, int(y2 + 0.5)))
                columns[window] = ignore_id(self.num_classes)
        if sum(area for area, _, _ in layers) > _MAX_COVER * columns.size:
            raise DataError(f"{where} (its objects cover the image more than {_MAX_COVER} times)")
        flat = columns.reshape(-1)
        for _, label, runs in layers if self.ordered else sorted(layers, key=lambda layer: -layer[0]):
            edges = runs.astype(np.int64).cumsum().tolist()
            for start, end in zip(edges[0::2], edges[1::2], strict=False):
                flat[start:end] = label
        return np.ascontiguousarray(columns.T)


@dataclass(frozen=True)
class Annotated:
    """The annotated images of some splits.

    Attributes:
        pairs: (image, file with its objects), sorted by image.
        labels: names of the classes.
        reader: reads the mask of a pair.
        problems: files that cannot be used.
        notes: what is left out.
    """

    pairs: tuple[tuple[Path, Path], ...]
    labels: Labels
    reader: MaskReader
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()


def is_background(name: str) -> bool:
    """Whether a class name is one that tools give to the background."""
    return name.strip().casefold() in _BACKGROUNDS


def drawn_classes(
    categories: Mapping[Id, str], described: DatasetFile, root: Path, source: str
) -> tuple[tuple[str, ...], dict[Id, int]]:
    """The classes of masks that are drawn from objects: "background", then the categories.

    The order is that of ``names`` in ``dataset.yaml``, else that of ``categories``. A category that is called
    background is class 0.

    Args:
        categories: names by id.
        described: ``dataset.yaml``.
        root: folder of the data set.
        source: what lists the categories, for messages.

    Returns:
        The names of the classes, and the class of each category.

    Raises:
        DataError: a category is not in ``names``.
    """
    names = (BACKGROUND, *(name for name in described.names or categories.values() if not is_background(name)))
    place = {name: i for i, name in enumerate(names)}
    class_of: dict[Id, int] = {}
    for category, name in categories.items():
        if name not in place and not is_background(name) and described.unknown != "ignore":
            raise DataError(
                f"{root / FILE}: 'names' are not the categories of {source}: {name!r} is missing; add it, or write"
                " 'unknown: ignore' to ignore its pixels"
            )
        class_of[category] = 0 if is_background(name) else place.get(name, ignore_id(len(names)))
    return names, class_of


def damaged(file: Path, image: Path, error: Exception, name: str = "") -> DataError:
    """The error for an annotation that cannot be used.

    Args:
        file: the annotation.
        image: its image.
        error: one of :data:`DAMAGE`.
        name: which object of the file; empty: the file as a whole.
    """
    where = f"{name}: " if name else ""
    return DataError(f"{file}: damaged annotation of {image.name} ({where}{reason_of(error)})")


def reason_of(error: Exception) -> str:
    """The text of an error of :data:`DAMAGE`."""
    return f"there is no {error}" if isinstance(error, KeyError) else str(error)


def check_object_count(count: int) -> None:
    """Refuse an image with more objects than images have.

    Raises:
        ValueError: there are too many.
    """
    if count > _MAX_OBJECTS:
        raise ValueError(f"{count} objects, at most {_MAX_OBJECTS} are read")


def check_lengths(polygons: Sequence[Sequence[float]], total: float = 0.0) -> float:
    """Refuse polygons that would take minutes to draw.

    Args:
        polygons: of one object.
        total: length of the polygons of the image so far, in pixels.

    Returns:
        The length with these polygons.

    Raises:
        ValueError: a number is not finite or far outside, or the polygons are too long.
    """
    for polygon in polygons:
        points = np.asarray(polygon, np.float64).reshape(-1, 2)
        if not (abs(points) <= _MAX_COORDINATE).all():  # also False for NaN
            raise ValueError("a polygon that leaves the image by far")  # pycocotools would hang or crash
        length = float(abs(points[1:] - points[:-1]).max(1).sum() + abs(points[-1] - points[0]).max())
        total += length
        if length > _MAX_LENGTH or total > _MAX_LENGTHS:
            raise ValueError(
                f"polygons of {total:.0f} pixels in length; {_MAX_LENGTH} for one and {_MAX_LENGTHS} for an image are"
                " possible"
            )
    return total


def polygons_of(segmentation: list[Any]) -> tuple[list[list[float]], int]:
    """The polygons of an object, each ``[x, y, x, y, ...]``, and the number of parts of fewer than three points.

    Accepts a list of polygons, a single polygon without its list, and points as pairs.

    Raises:
        ValueError: not a polygon; no part has three points.
    """
    parts = segmentation
    if not any(isinstance(part, list) for part in parts):
        parts = [parts]  # a single polygon
    elif len(parts) > 2 and all(isinstance(part, list) and len(part) == 2 for part in parts):
        parts = [parts]  # the points of a single polygon
    polygons = [_numbers(part) for part in parts]
    if odd := next((part for part in polygons if len(part) % 2 and len(part) > 6), None):
        raise ValueError(f"a polygon of {len(odd)} numbers")
    whole = [part for part in polygons if len(part) >= 6]  # pycocotools would read four numbers as a box
    if not whole:
        raise ValueError(f"a polygon of {len(polygons[0])} numbers; three points are needed, x and y of each")
    return whole, len(polygons) - len(whole)


def _numbers(part: Any) -> list[float]:
    if not isinstance(part, list):
        raise ValueError(f"{part!r:.40} where a polygon is expected")
    values = [value for item in part for value in (item if isinstance(item, list) else [item])]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{value!r:.40} where a coordinate is expected")
    return values


def polygon_runs(polygons: Sequence[Sequence[float]], size: Size) -> Runs:
    """Run lengths of the union of polygons that :func:`check_lengths` accepts.

    Raises:
        DependencyError: pycocotools is not installed.
    """
    tools = mask_tools()
    parts = tools.frPyObjects(list(polygons), *size)
    return _unpack((parts[0] if len(parts) == 1 else tools.merge(parts))["counts"]).astype(np.uint32)


def part_runs(part: NDArray[np.bool_], corner: tuple[int, int], size: Size) -> Runs:
    """Run lengths in an image of (H, W) of a mask ``(h, w)`` whose upper left pixel is at ``corner`` (y, x).

    Raises:
        ValueError: the mask leaves the image.
    """
    (top, left), (height, width) = corner, part.shape
    if min(left, top) < 0 or top + height > size[0] or left + width > size[1]:
        raise ValueError("a mask that leaves the image")
    columns = np.zeros((size[0], width), bool)
    columns[top : top + height] = part
    runs = runs_of(columns)
    runs[0] += left * size[0]
    if len(runs) % 2 == 0:  # the last run is inside
        runs = np.append(runs, np.uint32(0))
    runs[-1] += (size[1] - left - width) * size[0]
    return runs


def rle_runs(encoding: Mapping[str, Any], size: Size) -> Runs:
    """Run lengths from COCO's encoding, compressed (a text) or not (a list).

    Raises:
        KeyError, TypeError, ValueError: not COCO's format, or not for an image of this size.
    """
    if not isinstance(encoding, dict):
        raise ValueError(f"{encoding!r:.40} where polygons or run lengths are expected")
    declared = encoding["size"]
    if not isinstance(declared, list) or [int(side) for side in declared] != list(size):
        raise ValueError(f"run lengths for {declared!r:.40}, an image of {list(size)}")
    counts, pixels = encoding["counts"], size[0] * size[1]
    if len(counts) > _MAX_GROUPS * (pixels + 2):
        raise ValueError(f"more run lengths than the {pixels} pixels of the image")
    if isinstance(counts, str):
        runs = _unpack(counts.encode("ascii", "replace"))
    elif isinstance(counts, list) and all(isinstance(n, int | float) and n == int(n) for n in counts):
        runs = counts
    else:
        raise ValueError("run lengths that are neither a list of whole numbers nor a text")
    total = sum(map(int, runs))
    if min(runs, default=0) < 0 or total != pixels:
        raise ValueError(f"run lengths of {total} pixels, an image of {pixels}")
    return np.array(runs, np.uint32)


def _unpack(text: bytes) -> Any:
    """Run lengths from COCO's text: groups of five bits, low ones first; from the fourth run on, differences.

    Raises:
        ValueError: a character or a run is impossible.
    """
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if not len(codes):
        return codes
    if codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("a text that is not of run lengths")
    ends = np.flatnonzero(codes & 32 == 0)  # bit 5: the run has further groups
    starts = np.concatenate([[0], ends[:-1] + 1])
    groups = ends - starts + 1
    if groups.max() > _MAX_GROUPS:
        raise ValueError("a text with an impossible run length")
    place = np.arange(len(codes)) - np.repeat(starts, groups)
    values = np.add.reduceat((codes & 31) << 5 * place, starts)
    values -= np.where(codes[ends] & 16, 1 << 5 * groups, 0)  # the sign
    values[1::2] = values[1::2].cumsum()  # a difference is to the run before the last
    values[2::2] = values[2::2].cumsum()
    return values
