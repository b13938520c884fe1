"""Objects in Label Studio's JSON export: brush masks, polygons, rectangles and ellipses of all images in one file.

::

    ROOT/project-1-at-2026-01-31.json   the export "JSON": a list of tasks; the only one in ROOT
    ROOT/images/a.jpg                   or ROOT/a.jpg, under the names that the tasks give, with or without the prefix
                                        of eight characters that Label Studio puts before uploaded files

Its exports in COCO's and YOLO's formats are read by :mod:`foveal.data.coco` and :mod:`foveal.data.yolo`; those of brush
labels as PNG or NumPy are refused (:mod:`foveal.data.brush_masks`). Sources: the export formats of
https://labelstud.io/guide/export; the run lengths of brush masks are those of https://github.com/thi-ng/umbrella
(rle-pack).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..images.formats import SUFFIXES
from ..images.regions import Runs, runs_of
from ..info import Labels
from .label_files import Id, begins_with_key, is_file, named_file, read_json_list, shown
from .layout import ALL, SPLIT_NAMES, DatasetFile, Problem, draw_splits
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
    polygon_runs,
)

_FEW = 10  # JSON files in a folder; more of them belong to one image each
_KINDS = ("brushlabels", "polygonlabels", "rectanglelabels", "ellipselabels", "labels")  # of results with an area
_PREFIX = re.compile(r"[0-9a-f]{8}-")
_ELLIPSE_POINTS = 64
_MAX_RUNS = 1_000_000  # of a brush mask

Result = Mapping[str, Any]


def _files(root: Path) -> dict[str, Path]:
    """The exports by split: files that are named like splits, otherwise the only one."""
    files = sorted(root.glob("*.json"))
    if len(files) > _FEW:
        return {}
    tasks = [file for file in files if _is_export(file)]
    named = {file.stem: file for file in tasks if file.stem in SPLIT_NAMES}
    return named or ({ALL: tasks[0]} if len(tasks) == 1 else {})


def _is_export(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            start = stream.read(64).lstrip(b"\xef\xbb\xbf \r\n\t")
    except OSError:
        return False
    return start.startswith(b"[") and begins_with_key(file, "annotations", "completions")


def splits(root: Path, described: DatasetFile) -> tuple[str, ...]:
    """Names of the splits; empty if there is no such export."""
    names = tuple(_files(root))
    return ("train", "val", ALL) if names == (ALL,) and described.val_share else names


@dataclass(frozen=True)
class _Task:
    """The results of an image that were not cancelled, and how many annotations it has."""

    results: tuple[Result, ...]
    annotations: int


def read_annotations(root: Path, splits: Sequence[str], described: DatasetFile) -> Annotated:
    """Read the exports of some splits; tasks without an annotation are left out.

    The classes are ``names`` of ``dataset.yaml``, else the labels of all results in alphabetical order. Of several
    annotations of an image, the first one counts, or the one that is marked as ground truth.

    Raises:
        DataError: a file is damaged, or a label is not in the list of classes.
    """
    files = _files(root)
    tasks = {split: _tasks(file) for split, file in files.items()}
    used = {_label(result) for each in tasks.values() for _, task in each for result in task.results}
    labels = [*described.names, *sorted(used.difference(described.names, ("",)))]
    categories: dict[Id, str] = dict(enumerate(labels))
    names, class_of = drawn_classes(categories, described, root, "the JSON file")
    pairs: list[tuple[Path, Path]] = []
    problems: list[Problem] = []
    notes: list[str] = []
    entries: dict[Path, _Task] = {}
    for split in splits:
        name = split if split in files else ALL
        chosen = _find_images(root, files[name], tasks[name], described, problems)
        if split not in files:
            drawn = draw_splits((image.stem for image, _ in chosen), described)[split]
            chosen = [(image, task) for image, task in chosen if image.stem in drawn]
        labelled = [(image, task) for image, task in chosen if task.annotations]
        if alone := len(chosen) - len(labelled):
            notes.append(f"{alone} images have no annotation and are left out")
        for image, task in labelled:
            if image in entries:
                problems.append(Problem(image, f"occurs twice in {files[name].name}"))
            entries[image] = task
            pairs.append((image, files[name]))
    notes += _note_results([entries[image] for image, _ in pairs])
    ids = {label: number for number, label in enumerate(labels)}
    reader = OutlineMasks(partial(_read_objects, entries, ids), class_of, len(names), ordered=True)
    return Annotated(tuple(sorted(pairs)), Labels(names, described.palette), reader, tuple(problems), tuple(notes))


def _tasks(file: Path) -> list[tuple[list[str], _Task]]:
    """Per task: where its image may be, and its results.

    Raises:
        DataError: the file is not such an export.
    """
    tasks = []
    for number, item in enumerate(read_json_list(file), start=1):
        where = f"{file}: task {number}"
        if not isinstance(item, dict) or not isinstance(item.get("data"), dict):
            raise DataError(f"{where}: not Label Studio's format: it has no 'data'")
        found = item.get("annotations", item.get("completions"))
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            raise DataError(f"{where}: not Label Studio's format: 'annotations' is not a list of objects")
        valid = [each for each in found if not each.get("was_cancelled")]
        best = next((each for each in valid if each.get("ground_truth")), valid[0] if valid else {})
        results = best.get("result") or []
        if not isinstance(results, list) or not all(isinstance(each, dict) for each in results):
            raise DataError(f"{where}: not Label Studio's format: 'result' is not a list of objects")
        own = [each for each in results if each.get("type") in _KINDS or "rle" in _value(each)]
        places = [place for value in item["data"].values() if isinstance(value, str) for place in _places(value)]
        if not places:
            raise DataError(f"{where}: its 'data' names no image")
        tasks.append((places, _Task(tuple(own), len(valid))))
    return tasks


def _places(url: str) -> list[str]:
    """Paths of an image from the address that Label Studio has for it, the most particular first."""
    try:
        parts = urlsplit(url.replace("\\", "/"))
    except ValueError:  # a text that is no address
        return []
    path = unquote(parts.path)
    if local := parse_qs(parts.query).get("d"):  # /data/local-files/?d=photos/a.jpg
        path = local[0]
    if Path(path).suffix.lower() not in SUFFIXES:
        return []
    last = path.rpartition("/")[2]
    return list(dict.fromkeys([path.lstrip("/"), last, _PREFIX.sub("", last, count=1)]))


def _find_images(
    root: Path, file: Path, tasks: Sequence[tuple[list[str], _Task]], described: DatasetFile, problems: list[Problem]
) -> list[tuple[Path, _Task]]:
    """The images of tasks; those that are missing become problems."""
    excluded, found = described.excluded(root), []
    for places, task in tasks:
        image = next((path for path in _candidates(root, places) if is_file(path)), None)
        if image is None:
            problems.append(Problem(file, f"image {shown(places[-1])} is neither in {root.name}/images nor beside it"))
        elif image not in excluded:
            found.append((image, task))
    return found


def _candidates(root: Path, places: Sequence[str]) -> Iterator[Path]:
    for place in places:
        for folder in (root / "images", root):
            try:
                yield named_file(folder, place, root)
            except ValueError:  # it leads out of the data set
                continue


def _value(result: Result) -> Mapping[str, Any]:
    value = result.get("value")
    return value if isinstance(value, dict) else {}


def _label(result: Result) -> str:
    """The first label of a result, empty if it has none."""
    labels = next((labels for kind in _KINDS if (labels := _value(result).get(kind))), None)
    return labels[0].strip() if isinstance(labels, list) and isinstance(labels[0], str) else ""


def _note_results(tasks: Sequence[_Task]) -> list[str]:
    notes = []
    if several := sum(task.annotations > 1 for task in tasks):
        notes.append(f"{several} images have several annotations; the ground truth counts, else the first one")
    unlabelled = Counter(_label(result) == "" for task in tasks for result in task.results)[True]
    return [*notes, f"{unlabelled} results have no label and are left out"] if unlabelled else notes


# ---- objects


def _read_objects(
    entries: Mapping[Path, _Task], ids: Mapping[str, int], image: Path, file: Path, size: Size
) -> list[Outline]:
    """The objects of an image in their order.

    Raises:
        DataError: a result is damaged, or is for an image of another size.
        DependencyError: there are polygons, and pycocotools is not installed.
    """
    outlines, length, name = list[Outline](), 0.0, "its list"
    results = [result for result in entries[image].results if _label(result)]
    try:
        check_object_count(len(results))
        for result in results:
            name = f"result {shown(result.get('id'), 40)}"
            declared = result.get("original_height"), result.get("original_width")
            if declared != size:
                height, width = (shown(side, 20) for side in declared)
                raise ValueError(f"of an image of {width}x{height} (W x H), this one has {size[1]}x{size[0]}")
            if result.get("image_rotation"):
                raise ValueError("of an image that was rotated in Label Studio; rotate the file instead")
            value = _value(result)
            if "rle" in value:
                runs = brush_runs(value["rle"], size)
            else:
                polygon = _polygon(value, size)
                length = check_lengths([polygon], length)
                runs = polygon_runs([polygon], size)
            outlines.append(Outline(name, ids[_label(result)], runs))
    except DAMAGE as error:
        raise damaged(file, image, error, name) from error
    return outlines


def _polygon(value: Mapping[str, Any], size: Size) -> list[float]:
    """A shape as a polygon ``[x, y, x, y, ...]`` in pixels; the file has percent of width and height."""
    scale = np.array([size[1], size[0]], np.float64) / 100
    if "points" in value:
        points = np.array(value["points"], np.float64) * scale
    elif "radiusX" in value:
        angles = np.arange(_ELLIPSE_POINTS) * (2 * math.pi / _ELLIPSE_POINTS)
        radii = np.array([value["radiusX"], value["radiusY"]], np.float64) * scale
        points = _turned(radii * np.stack([np.cos(angles), np.sin(angles)], 1), value) + _corner(value) * scale
    else:
        sides = np.array([value["width"], value["height"]], np.float64) * scale
        points = _turned(sides * [[0, 0], [1, 0], [1, 1], [0, 1]], value) + _corner(value) * scale
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3:
        raise ValueError("not a list of three points or more")
    return points.ravel().tolist()


def _corner(value: Mapping[str, Any]) -> NDArray[np.float64]:
    """The upper left corner of a rectangle before it is turned, or the middle of an ellipse, in percent."""
    return np.array([value["x"], value["y"]], np.float64)


def _turned(points: NDArray[np.float64], value: Mapping[str, Any]) -> NDArray[np.float64]:
    """Points that are turned around (0, 0) by the rotation of a shape, clockwise in degrees."""
    angle = math.radians(float(value.get("rotation") or 0))
    return points @ np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])


def brush_runs(rle: Any, size: Size) -> Runs:
    """Run lengths of a brush mask for an image of (H, W), from Label Studio's list of bytes.

    The bytes are the four channels of all pixels, packed as runs; the object is where the last channel is not 0.

    Raises:
        ValueError: the list is damaged, or for an image of another size.
    """
    if not isinstance(rle, list) or not all(isinstance(byte, int) and 0 <= byte <= 255 for byte in rle):
        raise ValueError("a brush mask that is not a list of bytes")
    stream = _Bits(bytes(rle))
    total, word = stream.number(32), stream.number(5) + 1
    lengths = [stream.number(4) + 1 for _ in range(4)]
    if total != 4 * size[0] * size[1]:
        raise ValueError(f"a brush mask of {total} values, an image of {size[1]}x{size[0]} pixels with 4 values each")
    if word != 8:
        raise ValueError(f"a brush mask of {word} bits per value; 8 are possible")
    values, done = np.zeros(total, np.uint8), 0
    for _ in range(_MAX_RUNS):
        if done == total:
            return runs_of(values.reshape(*size, 4)[..., 3] != 0)
        repeated, length = stream.number(1), stream.number(lengths[stream.number(2)]) + 1
        if done + length > total:
            raise ValueError("a brush mask that is longer than its image")
        values[done : done + length] = stream.number(8) if repeated else stream.octets(length)
        done += length
    raise ValueError(f"a brush mask of more than {_MAX_RUNS} runs")


class _Bits:
    """Numbers of any count of bits from bytes, high bits first."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def _take(self, count: int) -> tuple[bytes, int]:
        """The bytes that contain the next ``count`` bits, and the number of bits before them in the first byte."""
        start, stop = self.place, self.place + count
        if stop > 8 * len(self.data):
            raise ValueError("a brush mask that ends too early")
        self.place = stop
        return self.data[start >> 3 : (stop + 7) >> 3], start & 7

    def number(self, count: int) -> int:
        part, before = self._take(count)
        return int.from_bytes(part) >> (8 * len(part) - before - count) & ((1 << count) - 1)

    def octets(self, count: int) -> NDArray[np.uint8]:
        """The next ``count`` numbers of eight bits."""
        part, before = self._take(8 * count)
        octets = np.frombuffer(part, np.uint8)
        return (octets[:-1] << before | octets[1:] >> (8 - before)).astype(np.uint8) if before else octets
