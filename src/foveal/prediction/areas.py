"""Connected areas of a segmentation as run lengths, polygons and COCO annotations."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, InputError, nearest
from ..files import atomic_write
from ..images import regions

Encoding = Literal["rle", "coco_rle", "polygons"]
#: How COCO annotations hold an area: lists of run lengths, COCO's compressed strings (which need pycocotools), or
#: outlines (which need rasterio); an area with holes has no outline in COCO and stays a run-length encoding.
ENCODINGS: tuple[Encoding, ...] = ("rle", "coco_rle", "polygons")


@dataclass(frozen=True)
class Area:
    """A connected area of one class; diagonal neighbours are connected.

    Attributes:
        class_index: its class.
        pixels: number of its pixels.
        bbox: x, y, width, height.
        runs: run lengths of the image column by column, alternately outside and inside, outside first, as in COCO.
    """

    class_index: int
    pixels: int
    bbox: tuple[int, int, int, int]
    runs: regions.Runs


class Polygon(NamedTuple):
    """The outline of an area in pixels, (0, 0) at the top left corner of the image.

    Attributes:
        class_index: its class.
        name: of the class.
        outline: ``(N, 2)`` x and y; the last point is the first.
        holes: outlines of its holes.
    """

    class_index: int
    name: str
    outline: NDArray[np.float64]
    holes: list[NDArray[np.float64]]


def find_areas(mask: NDArray[np.integer], min_area: int = 1) -> Iterator[Area]:
    """The areas of a mask of class indices ``(H, W)``, class by class; those of less than ``min_area`` pixels left out.

    Raises:
        ConfigError: ``min_area`` is below 1.
    """
    if min_area < 1:
        raise ConfigError(f"min_area={min_area}: give 1 pixel or more")
    height, width = mask.shape
    for index in np.unique(mask).tolist():
        parts, pixels = regions.label_parts(mask == index)
        flat = parts.ravel(order="F")
        places = np.flatnonzero(flat)
        places = places[np.argsort(flat[places], kind="stable")]
        for part in np.split(places, np.cumsum(pixels)[:-1]):
            if len(part) >= min_area:
                columns, rows = part // height, part % height
                box = (int(columns[0]), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1)
                yield Area(index, len(part), box, _runs(part, height * width))


def _runs(places: NDArray[np.intp], length: int) -> regions.Runs:
    """Run lengths of a mask of ``length`` pixels, given the ascending places of those inside."""
    breaks = np.flatnonzero(np.diff(places) > 1)
    starts = places[np.concatenate([[0], breaks + 1])]
    ends = places[np.concatenate([breaks, [len(places) - 1]])] + 1
    edges = np.stack([starts, ends], 1).ravel()
    return np.diff(np.concatenate([[0], edges, [length]])).astype(np.uint32)


def find_polygons(mask: NDArray[np.integer], names: Sequence[str]) -> list[Polygon]:
    """The areas of a mask as polygons; here, pixels are connected by common edges only.

    Raises:
        DependencyError: rasterio or shapely is not installed.
    """
    from ..images.polygons import areas_of

    return [
        Polygon(
            value,
            names[value] if value < len(names) else str(value),
            np.asarray(shape.exterior.coords),
            [np.asarray(ring.coords) for ring in shape.interiors],
        )
        for shape, value in areas_of([mask])
    ]


class CocoFile:
    """Writes the annotations of images into one COCO file, image by image; see :func:`coco_file`."""

    def __init__(self, file: IO[str], names: Sequence[str], encoding: Encoding, min_area: int) -> None:
        self.file, self.min_area = file, min_area
        self.encoding: Encoding = encoding
        self.images: list[dict[str, Any]] = []
        self.count = 0
        categories = [{"id": index + 1, "name": name} for index, name in enumerate(names)]
        file.write(f'{{"categories": {json.dumps(categories)}, "annotations": [')

    def add(self, file_name: str, mask: NDArray[np.integer]) -> None:
        """Add an image and an annotation for each of its areas.

        Raises:
            DependencyError: the encoding needs a library that is not installed.
        """
        height, width = mask.shape
        self.images.append({"id": len(self.images) + 1, "file_name": file_name, "height": height, "width": width})
        for area in find_areas(mask, self.min_area):
            self.count += 1
            row = {
                "id": self.count,
                "image_id": len(self.images),
                "category_id": area.class_index + 1,
                "area": area.pixels,
                "bbox": list(area.bbox),
                "iscrowd": 0,
                "segmentation": _segmentation(area, (height, width), self.encoding),
            }
            self.file.write(f"{',' * (self.count > 1)}\n{json.dumps(row)}")

    def finish(self) -> None:
        """Write what follows the annotations."""
        self.file.write(f'\n], "images": {json.dumps(self.images)}}}\n')


@contextmanager
def coco_file(
    path: str | Path, names: Sequence[str], encoding: Encoding = "rle", min_area: int = 1
) -> Iterator[CocoFile]:
    """Open a COCO file; it gets its name when it is complete.

    Args:
        path: the .json file.
        names: of the classes; their ids in the file are their indices plus 1, since 0 often means "no object" there.
        encoding: of the areas, one of :data:`ENCODINGS`.
        min_area: areas of fewer pixels are left out.

    Raises:
        InputError: another suffix, or the file cannot be written.
        ConfigError: an unknown encoding, or a ``min_area`` below 1.
    """
    path = Path(path)
    if path.suffix.lower() != ".json":
        raise InputError(f"{path}: COCO's annotations are .json files")
    if encoding not in ENCODINGS:
        raise ConfigError(f"unknown encoding {encoding!r} of areas{nearest(encoding, ENCODINGS)}")
    if min_area < 1:
        raise ConfigError(f"min_area={min_area}: give 1 pixel or more")
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        content = CocoFile(file, names, encoding, min_area)
        yield content
        content.finish()


def _segmentation(area: Area, size: tuple[int, int], encoding: Encoding) -> dict[str, Any] | list[list[float]]:
    """An area as COCO holds it."""
    if encoding == "polygons" and (outline := _outline(area, size)) is not None:
        return [outline]
    encode = regions.coco_rle if encoding == "coco_rle" else regions.uncompressed_rle
    return encode(area.runs, size)


def _outline(area: Area, size: tuple[int, int]) -> list[float] | None:
    """x and y of the outline in turn; ``None`` for an area with holes, or of parts that touch at corners only."""
    from ..images.polygons import areas_of

    left, top, width, height = area.bbox
    inside = regions.mask_of(area.runs, size)[top : top + height, left : left + width]
    shapes = [shape for shape, value in areas_of([inside.astype(np.uint8)]) if value]
    if len(shapes) != 1 or shapes[0].interiors:
        return None
    return (np.asarray(shapes[0].exterior.coords)[:-1] + np.array([left, top])).ravel().tolist()
