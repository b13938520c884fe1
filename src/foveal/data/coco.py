"""COCO's JSON annotations as class masks: panoptic ones from their PNG files, instances from polygons and runs.

Source: the data format of Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014, and of Kirillov et al.,
"Panoptic Segmentation", CVPR 2019.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, InputError
from ..images.reading import read_image
from ..images.regions import mask_tools
from ..info import IGNORE, Labels
from .layout import SPLIT_NAMES, Problem

Kind = Literal["panoptic", "instances"]
BACKGROUND = "background"  #: class 0 of instances: pixels that no object covers
_NAME = {"panoptic": re.compile(r"panoptic_(.+)\.json"), "instances": re.compile(r"instances_(.+)\.json")}
_FURTHEST = 1e6  # pixels that a corner of an outline may lie away
_BESIDE = "_annotations.coco.json"  # some exporters put it beside the images of a split


@dataclass(frozen=True)
class _Entry:
    size: tuple[int, int]
    annotations: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class CocoMasks:
    """Reads class masks, ``(image path, JSON path) -> (H, W) uint8``.

    Attributes:
        kind: of the annotations.
        class_of: class by category id.
        entries: what the JSON files say, by image path.
        folders: of the panoptic PNG files, by JSON path.
    """

    kind: Kind
    class_of: Mapping[int, int]
    entries: Mapping[Path, _Entry]
    folders: Mapping[Path, Path]

    def __call__(self, image: Path, mask: Path, /) -> NDArray[np.uint8]:
        """Paint one image's annotations.

        Raises:
            DataError: an annotation is damaged, names an unknown category, or its PNG file is missing.
            DependencyError: objects need pycocotools, which is not installed.
        """
        entry = self.entries[image]
        try:
            if self.kind == "panoptic":
                return self._panoptic(entry, self.folders[mask])
            return self._instances(entry)
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise DataError(f"{mask}: damaged annotation of {image.name} ({error!r})") from error

    def _panoptic(self, entry: _Entry, folder: Path) -> NDArray[np.uint8]:
        """Segment ids are R + 256 G + 65536 B, and 0 where nothing was annotated."""
        if len(entry.annotations) != 1:
            raise ValueError(f"{len(entry.annotations)} panoptic annotations instead of one")
        path = folder / entry.annotations[0]["file_name"]
        try:
            rgb = read_image(path).astype(np.int64)
        except InputError as error:
            raise DataError(str(error)) from error
        segments = rgb[..., 0] + (rgb[..., 1] << 8) + (rgb[..., 2] << 16)
        classes = {0: IGNORE}
        classes |= {int(s["id"]): self._class(s["category_id"]) for s in entry.annotations[0]["segments_info"]}
        ids, place = np.unique(segments, return_inverse=True)
        unknown = [int(i) for i in ids if int(i) not in classes]
        if unknown:
            pixels = int((segments == unknown[0]).sum())
            raise DataError(f"{path}: segment {unknown[0]} ({pixels} pixels) is not in the JSON file")
        return np.array([classes[int(i)] for i in ids], np.uint8)[place].reshape(segments.shape)

    def _instances(self, entry: _Entry) -> NDArray[np.uint8]:
        """Large objects first, so that small ones in front of them stay whole; crowds count as their class."""
        out = np.zeros(entry.size, np.uint8)
        layers = []
        for annotation in entry.annotations:
            layer = object_mask(annotation["segmentation"], entry.size)
            if layer is not None:  # else a box without an outline
                layers.append((int(layer.sum()), self._class(annotation["category_id"]), layer))
        for _, label, layer in sorted(layers, key=lambda item: -item[0]):
            out[layer] = label
        return out

    def _class(self, category: int) -> int:
        if category not in self.class_of:
            raise ValueError(f"category {category} is not among the file's categories")
        return self.class_of[category]


@dataclass(frozen=True)
class Annotated:
    """What the JSON files of some splits say."""

    pairs: tuple[tuple[Path, Path], ...]
    labels: Labels
    reader: CocoMasks
    problems: tuple[Problem, ...]


def object_mask(segmentation: Any, size: tuple[int, int]) -> NDArray[np.bool_] | None:
    """One object's pixels ``(H, W)`` from polygons or from runs, plain or compressed; ``None`` from an empty list.

    Raises:
        KeyError, TypeError, ValueError: not COCO's format.
        DependencyError: pycocotools is not installed.
    """
    painter = mask_tools()
    runs = segmentation
    if isinstance(runs, list):
        if not runs:
            return None
        if short := next((part for part in runs if len(part) < 6 or len(part) % 2), None):
            raise ValueError(f"a polygon of {len(short)} numbers")  # four would be taken for a box
        if not all(abs(float(value)) <= _FURTHEST for part in runs for value in part):  # nor NaN
            raise ValueError("a polygon that leaves the image by far")  # pycocotools would not end, or crash
        runs = painter.merge(painter.frPyObjects(runs, *size))
    elif tuple(runs["size"]) != size:
        raise ValueError(f"runs for {runs['size']}, an image of {list(size)}")
    elif isinstance(runs["counts"], list):
        if min(runs["counts"], default=0) < 0 or sum(runs["counts"]) != size[0] * size[1]:
            raise ValueError(f"runs of {sum(runs['counts'])} pixels, an image of {size[0] * size[1]}")
        runs = painter.frPyObjects(runs, *size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools 2.0.11 with NumPy 2
        return painter.decode(runs).astype(bool)


def splits(root: Path, kind: Kind) -> tuple[str, ...]:
    """Names of the splits with annotations of ``kind``: "train" for ``instances_train2017.json``."""
    return tuple(_files(root, kind))


def read_annotations(root: Path, wanted: Sequence[str], kind: Kind, excluded: frozenset[Path]) -> Annotated:
    """Read the JSON files of some splits. Classes are the categories by rising id, after "background" for instances.

    Raises:
        DataError: a file is no such JSON, lacks its images, or the splits have different categories.
    """
    files = _files(root, kind)
    pairs: list[tuple[Path, Path]] = []
    problems: list[Problem] = []
    entries: dict[Path, _Entry] = {}
    folders: dict[Path, Path] = {}
    categories: dict[int, str] = {}
    for split in wanted:
        file = files[split]
        data = _json(file)
        try:
            found = {int(c["id"]): str(c["name"]) for c in data["categories"]}
            names = list(found.values())
            found = {i: f"{name} ({i})" if names.count(name) > 1 else name for i, name in found.items()}
            if categories and found != categories:
                raise DataError(f"{file}: other categories than in {files[wanted[0]].name}")
            categories = found
            folder = _image_folder(root, file, [str(image["file_name"]) for image in data["images"]])
            folders[file] = file.with_suffix("")
            by_image: dict[int, list[Mapping[str, Any]]] = {}
            for annotation in data["annotations"]:
                by_image.setdefault(annotation["image_id"], []).append(annotation)
            for image in sorted(data["images"], key=lambda image: str(image["file_name"])):
                path = folder / image["file_name"]
                if path in excluded:
                    continue
                if path in entries:
                    problems.append(Problem(path, f"occurs twice in {file.name}"))
                elif not path.is_file():
                    problems.append(Problem(path, f"is in {file.name}, but not in the folder"))
                else:
                    size = int(image["height"]), int(image["width"])
                    entries[path] = _Entry(size, tuple(by_image.get(image["id"], ())))
                    pairs.append((path, file))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{file}: not COCO's {kind} format ({error!r})") from error
    names = [categories[i] for i in sorted(categories)]
    names = [BACKGROUND, *names] if kind == "instances" else names
    class_of = {i: place + (kind == "instances") for place, i in enumerate(sorted(categories))}
    return Annotated(tuple(pairs), Labels(tuple(names)), CocoMasks(kind, class_of, entries, folders), tuple(problems))


def _files(root: Path, kind: Kind) -> dict[str, Path]:
    found = {}
    if (root / "annotations").is_dir():
        for file in sorted((root / "annotations").glob("*.json")):
            if match := _NAME[kind].fullmatch(file.name):
                bare = re.sub(r"\d{4}$", "", match[1])  # of the year
                found[bare if bare in SPLIT_NAMES else match[1]] = file
    if kind == "instances":
        found |= {file.parent.name: file for file in sorted(root.glob(f"*/{_BESIDE}"))}
    return found


def _image_folder(root: Path, file: Path, names: Sequence[str]) -> Path:
    """The folder that holds the images of a JSON file: the first usual one in which the first image lies."""
    match = next((m for pattern in _NAME.values() if (m := pattern.fullmatch(file.name))), None)
    if match is None:
        return file.parent
    places = list(_usual_folders(root, match[1]))
    for place in places:
        if any((place / name).is_file() for name in names[:100]):
            return place
    tried = ", ".join(f"{place.relative_to(root)}/" for place in places)
    raise DataError(f"{file}: its images are in none of {tried}")


def _usual_folders(root: Path, split: str) -> Iterator[Path]:
    for name in dict.fromkeys((split, re.sub(r"\d{4}$", "", split))):
        yield from (root / name, root / "images" / name)
    yield from (root / "images", root)


def _json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read as JSON ({' '.join(str(error).split())})") from error
    if not isinstance(data, dict):
        raise DataError(f"{file}: not COCO's format (a {type(data).__name__} at the top)")
    return data
