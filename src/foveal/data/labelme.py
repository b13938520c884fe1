"""Objects in labelme's JSON files, one beside each image: polygons, rectangles, circles and masks.

Source: the format of labelme, https://github.com/wkentaro/labelme (version 5).
"""

from __future__ import annotations

import base64
import binascii
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, InputError
from ..images.formats import SUFFIXES
from ..images.reading import read_mask
from ..images.regions import Runs
from ..info import Labels, ignore_id
from .label_files import Id, as_id, begins_with_key, is_file, named_file, read_json, read_objects, read_text, shown
from .layout import DatasetFile
from .outlines import (
    DAMAGE,
    Annotated,
    Outline,
    OutlineMasks,
    Size,
    check_lengths,
    check_object_count,
    damaged,
    drawn_classes,
    part_runs,
    polygon_runs,
)
from .sidecar_files import Folders, Kind, files_of, find_folders, pair_files, split_names

_IGNORED = "__ignore__"  # labelme's name of pixels that are not to be learnt
_LIST = "labels.txt"  # labelme's list of class names
_CIRCLE_POINTS = 64
_WITHOUT_AREA = ("point", "points", "line", "linestrip")

Shape = Mapping[str, Any]


def _partner(file: Path, root: Path) -> Path | None:
    """The image that a file names, if it is inside the data set."""
    try:
        name = str(read_json(file).get("imagePath")).replace("\\", "/")
        image = named_file(root, os.path.relpath(file.parent / name, root), root)
    except (DataError, ValueError):
        return None
    return image if image.suffix.lower() in SUFFIXES and is_file(image) else None


_KIND = Kind(
    ".json",
    ("labels", "label", "annotations", "annotation", "json", "jsons", "labelme"),
    lambda file: begins_with_key(file, "shapes"),
    partner=_partner,
)


def splits(root: Path, described: DatasetFile) -> tuple[str, ...]:
    """Names of the splits; empty if the data set has no such files."""
    return split_names(find_folders(root, _KIND), described)


def read_annotations(root: Path, splits: Sequence[str], described: DatasetFile) -> Annotated:
    """Find the images and JSON files of some splits; images without one are left out.

    The classes are ``names`` of ``dataset.yaml``, else the lines of ``labels.txt``, else the labels of all files of
    all splits in alphabetical order.

    Raises:
        DataError: a file cannot be read, or a label is not in the list of classes.
    """
    folders = find_folders(root, _KIND)
    found = pair_files(root, folders, splits, described, _KIND)
    labels = [label for label in _labels(root, folders, described) if label != _IGNORED]
    categories: dict[Id, str] = dict(enumerate(labels))
    names, class_of = drawn_classes(categories, described, root, "the JSON files")
    ids = {label: number for number, label in enumerate(labels)} | {_IGNORED: -1}
    reader = OutlineMasks(partial(_read_objects, ids), class_of | {-1: ignore_id(len(names))}, len(names))
    notes = _note_shapes([file for _, file in found.pairs])
    if found.alone:
        notes.append(f"{len(found.alone)} images have no JSON file and are left out: first {found.alone[0][0].name}")
    pairs = tuple(sorted(found.pairs))
    return Annotated(pairs, Labels(names, described.palette), reader, tuple(found.problems), tuple(notes))


def _labels(root: Path, folders: Folders, described: DatasetFile) -> list[str]:
    """The names of all classes, in their order."""
    if (root / _LIST).is_file():
        lines = (line.strip() for line in read_text(root / _LIST).splitlines())
        return list(dict.fromkeys(line for line in lines if line))
    used = {_label(shape) for file in files_of(folders, _KIND) if _KIND.fits(file) for shape in _readable(file)}
    return [*described.names, *sorted(used.difference(described.names))]


def _label(shape: Shape) -> str:
    """The label of a shape, empty if it has none."""
    label = shape.get("label")
    return str(label).strip() if isinstance(label, str | int) else ""


def _note_shapes(files: Sequence[Path]) -> list[str]:
    """Notes on the shapes that have no area."""
    kinds = Counter(_kind(shape) for file in files for shape in _readable(file) if not _has_area(shape))
    return [f"{count} shapes of the type {kind!r} have no area and are left out" for kind, count in kinds.items()]


def _readable(file: Path) -> list[Shape]:
    """The shapes of a file; none if it is damaged, as reading its image will refuse it."""
    try:
        return [shape for shape in _shapes(file) if _label(shape)]
    except DataError:
        return []


def _shapes(file: Path, data: Mapping[str, Any] | None = None) -> list[Shape]:
    """The shapes of a file, whose content is ``data`` if it was read before."""
    return read_objects(file, "shapes", "labelme's", data)


def _kind(shape: Shape) -> str:
    return str(shape.get("shape_type") or "polygon")


def _has_area(shape: Shape) -> bool:
    """Whether a shape is neither a point or line nor a polygon of fewer than three points."""
    points, kind = shape.get("points"), _kind(shape)
    stray = kind == "polygon" and isinstance(points, list) and len(points) < 3
    return kind not in _WITHOUT_AREA and not stray


# ---- objects


def _read_objects(ids: Mapping[str, int], image: Path, file: Path, size: Size) -> list[Outline]:
    """The objects of an image; polygons of one label and ``group_id`` are parts of one object.

    Raises:
        DataError: the file cannot be read, a shape is damaged, or the file gives another size for the image.
        DependencyError: pycocotools is not installed.
    """
    data = read_json(file)
    shapes = _shapes(file, data)
    sides = (data.get("imageHeight"), data.get("imageWidth"))
    # Some programs write texts.
    declared = tuple(int(side) if isinstance(side, str) and side.isdecimal() else side for side in sides)
    if None not in declared and declared != size:
        height, width = (shown(side, 20) for side in declared)
        raise DataError(f"{file}: mask of {width}x{height} (W x H) for the image {image.name} of {size[1]}x{size[0]}")
    groups: dict[Any, tuple[str, int, list[list[float]]]] = {}
    outlines, length, name = list[Outline](), 0.0, "its list"
    try:
        check_object_count(len(shapes))
        for number, shape in enumerate(shapes, start=1):
            name = f"shape {number}"
            label, kind = _label(shape), _kind(shape)
            if label not in ids:
                raise ValueError(f"label {shown(label)} is not in the list of classes" if label else "it has no label")
            if kind == "mask":
                outlines.append(Outline(name, ids[label], _mask_runs(shape, size)))
            elif _has_area(shape):
                polygon = _polygon(kind, shape)
                length = check_lengths([polygon], length)
                group = number if shape.get("group_id") is None else (label, as_id(shape["group_id"]))
                groups.setdefault(group, (name, ids[label], []))[2].append(polygon)
        outlines += [Outline(name, category, polygon_runs(parts, size)) for name, category, parts in groups.values()]
    except DAMAGE as error:
        raise damaged(file, image, error, name) from error
    return outlines


def _polygon(kind: str, shape: Shape) -> list[float]:
    """A shape as a polygon ``[x, y, x, y, ...]``."""
    points = np.array(shape.get("points"), np.float64)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError("'points' is not a list of x and y")
    if kind == "rectangle" and len(points) == 2:
        (x1, y1), (x2, y2) = points
        points = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])
    elif kind == "circle":
        if len(points) != 2:
            raise ValueError(f"a circle of {len(points)} points; its middle and a point on it are needed")
        radius = math.dist(*points)
        angles = np.arange(_CIRCLE_POINTS) * (2 * math.pi / _CIRCLE_POINTS)
        points = points[0] + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
    elif kind not in ("polygon", "rectangle", "oriented_rectangle"):
        raise ValueError(f"shape_type {shown(kind)} is unknown")
    if len(points) < 3:
        raise ValueError(f"a {kind} of {len(points)} points; three are needed")
    return points.ravel().tolist()


def _mask_runs(shape: Shape, size: Size) -> Runs:
    """Run lengths of a shape that is an image in base64, placed at its first point."""
    points, text = shape.get("points"), shape.get("mask")
    if not isinstance(points, list) or not isinstance(text, str):
        raise ValueError("a mask without 'points' or without 'mask'")
    try:
        part = read_mask(base64.b64decode(text, validate=True), name="its mask", max_pixels=size[0] * size[1]) != 0
    except (InputError, binascii.Error) as error:
        raise ValueError(str(error)) from error
    left, top = (round(float(value)) for value in points[0])
    return part_runs(part, (top, left), size)
