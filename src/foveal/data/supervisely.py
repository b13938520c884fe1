"""Objects in Supervisely's projects: bitmaps, polygons and rectangles, one JSON file per image.

::

    ROOT/meta.json                 the classes: {"classes": [{"title": "car", "color": "#FF0000", ...}, ...]}
    ROOT/train/img/a.jpg           the folders inside are the data sets of the project
    ROOT/train/ann/a.jpg.json

Source: the annotation format of https://docs.supervisely.com (JSON format of images).
"""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, InputError
from ..images.reading import read_picture
from ..images.regions import Runs, mask_of, runs_of
from ..info import Labels
from .label_files import Id, begins_with_key, read_json, read_objects, shown
from .layout import ALL, SPLIT_NAMES, DatasetFile, Problem, draw_splits, images_in, subfolders
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
    is_background,
    part_runs,
    polygon_runs,
    polygons_of,
)

_META = "meta.json"
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
_MAX_BITMAP = 256 << 20  # bytes of an unpacked bitmap, which is a PNG
_WITH_AREA = ("bitmap", "polygon", "rectangle")

Figure = Mapping[str, Any]


def folders_of(root: Path) -> dict[str, Path]:
    """The data sets of a project by name; empty if the folder is no project."""
    if not ((root / _META).is_file() and begins_with_key(root / _META, "classes")):
        return {}
    return {folder.name: folder for folder in subfolders(root) if all((folder / x).is_dir() for x in ("img", "ann"))}


def splits(root: Path, described: DatasetFile) -> tuple[str, ...]:
    """Names of the splits: the data sets, if one has the name of a split; otherwise all are one split."""
    names = tuple(folders_of(root))
    if not names or set(names) & set(SPLIT_NAMES):
        return names
    return ("train", "val", ALL) if described.val_share else (ALL,)


def read_annotations(root: Path, splits: Sequence[str], described: DatasetFile) -> Annotated:
    """Find the images and JSON files of some splits; images without one are left out.

    The classes are ``names`` of ``dataset.yaml``, else those of ``meta.json`` in their order.

    Raises:
        DataError: ``meta.json`` is damaged, or a class of it is not in ``names``.
    """
    folders, excluded = folders_of(root), described.excluded(root)
    classes = _read_meta(root / _META)
    categories: dict[Id, str] = dict(enumerate(classes))
    names, class_of = drawn_classes(categories, described, root, _META)
    pairs: list[tuple[Path, Path]] = []
    problems: list[Problem] = []
    alone = 0
    for split in splits:
        for image, file in _paired(folders, split, described, problems):
            if image in excluded or file in excluded:
                continue
            if file.is_file():
                pairs.append((image, file))
            else:
                alone += 1
    notes = [f"{alone} images have no JSON file and are left out"] if alone else []
    notes += _note_shapes([file for _, file in pairs])
    ids = {name: number for number, name in enumerate(classes)}
    reader = OutlineMasks(partial(_read_objects, ids), class_of, len(names), ordered=True)
    palette = described.palette or _palette(names, classes)
    return Annotated(tuple(sorted(pairs)), Labels(names, palette), reader, tuple(problems), tuple(notes))


def _paired(
    folders: Mapping[str, Path], split: str, described: DatasetFile, problems: list[Problem]
) -> Iterator[tuple[Path, Path]]:
    """The images of a split, each with the path of its JSON file; JSON files without an image become problems."""
    chosen = [folders[split]] if split in folders else list(folders.values())
    images = [(folder, image) for folder in chosen for image in images_in(folder / "img")]
    drawn = draw_splits((image.name for _, image in images), described).get(split)
    for folder, image in images:
        if split in folders or drawn is None or image.name in drawn:
            yield image, folder / "ann" / f"{image.name}.json"
    known = {(folder, image.name) for folder, image in images}
    for folder in chosen:
        for file in sorted((folder / "ann").glob("*.json")):
            if (folder, file.stem) not in known:
                problems.append(Problem(file, f"has no image {file.stem[:100]} in {folder.name}/img"))


def _read_meta(file: Path) -> dict[str, tuple[int, int, int] | None]:
    """The classes in their order, with their colours.

    Raises:
        DataError: the file is damaged, or lists no class.
    """
    classes: dict[str, tuple[int, int, int] | None] = {}
    listed = read_json(file).get("classes")
    if not isinstance(listed, list):
        raise DataError(f"{file}: 'classes' is not a list")
    for item in listed:
        title, colour = (item.get("title"), item.get("color")) if isinstance(item, dict) else (None, None)
        if not isinstance(title, str) or not title.strip() or title in classes:
            raise DataError(f"{file}: a class without a title of its own: {shown(item)}")
        classes[title] = None
        if isinstance(colour, str) and _COLOUR.fullmatch(colour):
            red, green, blue = bytes.fromhex(colour[1:])
            classes[title] = (red, green, blue)
    if not classes:
        raise DataError(f"{file}: no classes in it")
    return classes


def _palette(
    names: Sequence[str], classes: Mapping[str, tuple[int, int, int] | None]
) -> tuple[tuple[int, int, int], ...]:
    """The colours of the classes, black for background; none if one is unknown."""
    colours = [(0, 0, 0) if is_background(name) else classes.get(name) for name in names]
    return tuple(colour for colour in colours if colour) if all(colours) else ()


def _note_shapes(files: Sequence[Path]) -> list[str]:
    """Notes on figures that have no area."""
    kinds: Counter[str] = Counter()
    for file in files:
        try:
            kinds.update(_kind(figure) for figure in _figures(file) if _kind(figure) not in _WITH_AREA)
        except DataError:  # reading the image will refuse it
            continue
    return [f"{count} figures of the type {kind!r} have no area and are left out" for kind, count in kinds.items()]


def _figures(file: Path, data: Mapping[str, Any] | None = None) -> list[Figure]:
    """The figures of a file, whose content is ``data`` if it was read before."""
    return read_objects(file, "objects", "Supervisely's", data)


def _kind(figure: Figure) -> str:
    return str(figure.get("geometryType") or "")[:40]


# ---- objects


def _read_objects(ids: Mapping[str, int], image: Path, file: Path, size: Size) -> list[Outline]:
    """The objects of an image in their order.

    Raises:
        DataError: the file cannot be read, a figure is damaged, or the file gives another size for the image.
        DependencyError: pycocotools is not installed.
    """
    data = read_json(file)
    figures, declared = _figures(file, data), data.get("size")
    if isinstance(declared, dict) and (declared.get("height"), declared.get("width")) != size:
        height, width = (shown(declared.get(side), 20) for side in ("height", "width"))
        raise DataError(f"{file}: mask of {width}x{height} (W x H) for the image {image.name} of {size[1]}x{size[0]}")
    outlines, length, name = list[Outline](), 0.0, "its list"
    try:
        check_object_count(len(figures))
        for number, figure in enumerate(figures, start=1):
            name = f"object {number}"
            if _kind(figure) not in _WITH_AREA:
                continue
            title = figure.get("classTitle")
            if not isinstance(title, str) or title not in ids:
                raise ValueError(f"class {shown(title)} is not in {_META}")
            if _kind(figure) == "bitmap":
                runs = _bitmap_runs(figure["bitmap"], size)
            else:
                outer, holes = _polygons(figure)
                length = check_lengths([outer, *holes], length)
                runs = _without_holes(outer, holes, size)
            outlines.append(Outline(name, ids[title], runs))
    except DAMAGE as error:
        raise damaged(file, image, error, name) from error
    return outlines


def _polygons(figure: Figure) -> tuple[list[float], list[list[float]]]:
    """The outer polygon of a figure, and its holes."""
    points = figure["points"]
    exterior = points["exterior"]
    if _kind(figure) == "rectangle":
        (x1, y1), (x2, y2) = exterior
        exterior = [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]
    (outer,), _ = polygons_of(exterior)
    return outer, [polygon for hole in points.get("interior") or () for polygon in polygons_of(hole)[0]]


def _without_holes(outer: list[float], holes: list[list[float]], size: Size) -> Runs:
    runs = polygon_runs([outer], size)
    return runs_of(mask_of(runs, size) & ~mask_of(polygon_runs(holes, size), size)) if holes else runs


def _bitmap_runs(bitmap: Mapping[str, Any], size: Size) -> Runs:
    """Run lengths of a bitmap: a PNG, packed by zlib, in base64. The object is its alpha, else its pixels above 0."""
    text, origin = bitmap["data"], bitmap["origin"]
    left, top = (round(float(value)) for value in origin)
    try:
        unpacker = zlib.decompressobj()
        content = unpacker.decompress(base64.b64decode(text, validate=True), _MAX_BITMAP)
        if unpacker.unconsumed_tail:
            raise ValueError(f"a bitmap of more than {_MAX_BITMAP >> 20} MiB")
        picture = read_picture(content, name="its bitmap", max_pixels=size[0] * size[1])
    except (InputError, binascii.Error, zlib.error) as error:
        raise ValueError(str(error)) from error
    part = picture.pixels.any(2) if picture.alpha is None else picture.alpha != 0
    return part_runs(np.asarray(part, bool), (top, left), size)
