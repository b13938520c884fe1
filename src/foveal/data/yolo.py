"""Outlines in YOLO's text files: one line per object, ``class x y x y ...``, relative to width and height.

The names of the classes are in ``data.yaml`` (as Ultralytics writes it), ``classes.txt`` or ``dataset.yaml``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..config import read_yaml
from ..errors import DataError
from ..info import MAX_CLASSES, Labels
from .label_files import Id, as_id, read_text, shown
from .layout import FILE, DatasetFile
from .outlines import (
    Annotated,
    Outline,
    OutlineMasks,
    Size,
    check_lengths,
    check_object_count,
    drawn_classes,
    polygon_runs,
)
from .sidecar_files import Folders, Kind, files_of, find_folders, pair_files, split_names

_TOLERANCE = 0.01  # by which outlines may leave the image, relative to its sides
_NAMES = ("classes.txt", "obj.names", "labels/classes.txt")


def _looks_like_outlines(file: Path) -> bool:
    """Whether the first line of a text consists of a class and an outline or a box."""
    try:
        words = next((line.split() for line in read_text(file).splitlines() if line.strip()), [])
        category, *values = map(float, words)
    except (DataError, ValueError):
        return False
    return len(values) >= 4 and category.is_integer() and all(abs(value - 0.5) <= 0.5 + _TOLERANCE for value in values)


_KIND = Kind(".txt", ("instance", "instances", "labels", "label"), _looks_like_outlines, strict=False)


def splits(root: Path, described: DatasetFile) -> tuple[str, ...]:
    """Names of the splits; empty if the data set has no such files."""
    return split_names(find_folders(root, _KIND), described)


def read_annotations(root: Path, splits: Sequence[str], described: DatasetFile) -> Annotated:
    """Find the images and texts of some splits. As in YOLO, an image without a text has no objects.

    Args:
        root: folder of the data set.
        splits: names of the splits, as :func:`splits` gives them.
        described: ``dataset.yaml``.

    Raises:
        DataError: the names of the classes cannot be read.
        ConfigError: ``data.yaml`` is not valid YAML.
    """
    folders = find_folders(root, _KIND)
    found = pair_files(root, folders, splits, described, _KIND)
    categories, notes = _categories(root, folders, described)
    names, class_of = drawn_classes(categories, described, root, "data.yaml")
    if found.alone:
        notes.append(f"{len(found.alone)} images have no text file, so no objects: first {found.alone[0][0].name}")
    pairs = sorted([*found.pairs, *found.alone])
    reader = OutlineMasks(_read_objects, class_of, len(names))
    return Annotated(tuple(pairs), Labels(names, described.palette), reader, tuple(found.problems), tuple(notes))


# ---- names of the classes


def _categories(root: Path, folders: Folders, described: DatasetFile) -> tuple[dict[Id, str], list[str]]:
    """Names by class id, and notes."""
    for file in (root / "data.yaml", root / "data.yml"):
        if file.is_file():
            return _from_yaml(file), []
    if described.names:
        return dict(enumerate(described.names)), []
    for file in (root / name for name in _NAMES):
        if file.is_file():
            return dict(enumerate(line.strip() for line in read_text(file).splitlines() if line.strip())), []
    last = max((_last_class(file) for file in files_of(folders, _KIND) if file.stem != "classes"), default=0)
    if last >= MAX_CLASSES:
        raise DataError(f"{root}: class {last} in a text file; at most {MAX_CLASSES} classes are possible")
    note = f"no data.yaml or classes.txt names the classes; write 'names: [...]' into {FILE}, one per id"
    return {i: f"class {i}" for i in range(last + 1)}, [note]


def _last_class(file: Path) -> int:
    """The highest class of a text file; damaged lines do not count, as reading the image will refuse them."""
    classes = [0]
    for line in read_text(file).splitlines():
        with suppress(ValueError, OverflowError):
            classes += [int(float(word)) for word in line.split(maxsplit=1)[:1]]
    return max(classes)


def _from_yaml(file: Path) -> dict[Id, str]:
    data = read_yaml(file)
    names = data.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, Mapping) or not names:
        raise DataError(f"{file}: 'names' is missing; it lists the names of the classes by id")
    try:
        categories = {as_id(i): str(name) for i, name in names.items() if isinstance(name, str | int)}
    except ValueError as error:
        raise DataError(f"{file}: 'names': {error}") from error
    if len(set(categories.values())) < len(names):
        raise DataError(f"{file}: 'names': a class has the name of another one, or none")
    if isinstance(count := data.get("nc", len(names)), int) and count != len(names):
        raise DataError(f"{file}: nc is {count}, but 'names' has {len(names)} classes")
    return categories


# ---- objects


def _read_objects(image: Path, file: Path, size: Size) -> list[Outline]:
    """The objects of an image.

    Raises:
        DataError: the file cannot be read, or a line is not an outline.
        DependencyError: pycocotools is not installed.
    """
    outlines, length, where = list[Outline](), 0.0, f"{file}"
    if not file.exists():
        return outlines
    lines = [(number, line) for number, line in enumerate(read_text(file).splitlines(), start=1) if line.strip()]
    try:
        check_object_count(len(lines))
        for number, line in lines:
            where = f"{file}: line {number}"
            category, points = _parse(line.split(), where)
            polygons = [(points * size[::-1]).ravel().tolist()]
            length = check_lengths(polygons, length)
            outlines.append(Outline(f"line {number}", category, polygon_runs(polygons, size)))
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error
    return outlines


def _parse(words: Sequence[str], where: str) -> tuple[int, NDArray[np.float64]]:
    """The class of a line, and its points ``(N, 2)`` of 0..1."""
    values: list[float] = []
    for word in words:
        try:
            values.append(float(word))
        except ValueError:
            hint = "; separate the numbers by spaces" if "," in word or ";" in word else ""
            raise DataError(
                f"{where}: expected numbers only: a class and an outline, 'class x y x y ...', found"
                f" {shown(word, 40)}{hint}"
            ) from None
    category, points = values[0], np.array(values[1:], np.float64)
    if not (0 <= category < 1e9 and category.is_integer()):
        raise DataError(f"{where}: class {shown(words[0], 40)}; classes are whole numbers from 0")
    if len(points) == 4:
        raise DataError(f"{where}: a box, not an outline; masks need 'class x y x y ...' with at least three points")
    if len(points) < 6 or len(points) % 2:
        raise DataError(f"{where}: {len(points)} numbers after the class; an outline has x and y of 3 points or more")
    if not ((points >= -_TOLERANCE) & (points <= 1 + _TOLERANCE)).all():
        raise DataError(f"{where}: outlines are relative to width and height, 0 to 1, not in pixels")
    return int(category), points.clip(0, 1).reshape(-1, 2)
