"""Class masks from COCO's JSON: panoptic annotations from their PNG files, instances from polygons or run lengths.

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
_MAX_COORDINATE = 1e6  # pixels; a polygon with a corner further away is refused
_IN_SPLIT = "_annotations.coco.json"  # some exporters write it into the folder of images of a split


@dataclass(frozen=True)
class _Entry:
    """An image in a JSON file."""

    size: tuple[int, int]  # (H, W)
    annotations: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class CocoMasks:
    """Reads class masks, ``(image path, JSON path) -> (H, W) uint8``.

    Attributes:
        kind: kind of the annotations.
        class_of: class by category id.
        entries: entries of the JSON files, by image path.
        folders: folders of the panoptic PNG files, by JSON path.
    """

    kind: Kind
    class_of: Mapping[int, int]
    entries: Mapping[Path, _Entry]
    folders: Mapping[Path, Path]

    def __call__(self, image: Path, mask: Path, /) -> NDArray[np.uint8]:
        """Draw the annotations of one image.

        Raises:
            DataError: an annotation is damaged, has an unknown category, or its PNG file is missing.
            DependencyError: the annotations are instances, and pycocotools is not installed.
        """
        entry = self.entries[image]
        try:
            if self.kind == "panoptic":
                return self._panoptic(entry, self.folders[mask])
            return self._instances(entry)
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise DataError(f"{mask}: damaged annotation of {image.name} ({error!r})") from error

    def _panoptic(self, entry: _Entry, folder: Path) -> NDArray[np.uint8]:
        """Segment ids are R + 256 G + 65536 B; 0 is a pixel without annotation."""
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
            raise DataError(f"{path}: segment {unknown[0]} ({pixels} pixels) has no entry in the JSON file")
        return np.array([classes[int(i)] for i in ids], np.uint8)[place].reshape(segments.shape)

    def _instances(self, entry: _Entry) -> NDArray[np.uint8]:
        """Draw large objects first, so that smaller ones in front stay complete; crowds get the class of the object."""
        out = np.zeros(entry.size, np.uint8)
        layers = []
        for annotation in entry.annotations:
            layer = object_mask(annotation["segmentation"], entry.size)
            if layer is not None:  # None: a box without an outline
                layers.append((int(layer.sum()), self._class(annotation["category_id"]), layer))
        for _, label, layer in sorted(layers, key=lambda item: -item[0]):
            out[layer] = label
        return out

    def _class(self, category: int) -> int:
        if category not in self.class_of:
            raise ValueError(f"category {category} is not in the list of categories")
        return self.class_of[category]


@dataclass(frozen=True)
class Annotated:
    """The annotated images of some splits.

    Attributes:
        pairs: (image, JSON file), sorted by image within a file.
        labels: names of the classes.
        reader: reads the mask of a pair.
        problems: images that are missing or listed twice.
    """

    pairs: tuple[tuple[Path, Path], ...]
    labels: Labels
    reader: CocoMasks
    problems: tuple[Problem, ...]


def object_mask(segmentation: Any, size: tuple[int, int]) -> NDArray[np.bool_] | None:
    """The mask ``(H, W)`` of one object from polygons or from run lengths, plain or compressed.

    Args:
        segmentation: as COCO's JSON has it.
        size: (H, W) of the image.

    Returns:
        The mask; ``None`` if ``segmentation`` is an empty list.

    Raises:
        KeyError, TypeError, ValueError: not COCO's format.
        DependencyError: pycocotools is not installed.
    """
    tools = mask_tools()
    runs = segmentation
    if isinstance(runs, list):
        if not runs:
            return None
        if short := next((part for part in runs if len(part) < 6 or len(part) % 2), None):
            raise ValueError(f"a polygon of {len(short)} numbers")  # pycocotools would read four as a box
        if not all(abs(float(value)) <= _MAX_COORDINATE for part in runs for value in part):  # also False for NaN
            raise ValueError("a polygon that leaves the image by far")  # pycocotools would hang or crash
        runs = tools.merge(tools.frPyObjects(runs, *size))
    elif tuple(runs["size"]) != size:
        raise ValueError(f"run lengths for {runs['size']}, an image of {list(size)}")
    elif isinstance(runs["counts"], list):
        if min(runs["counts"], default=0) < 0 or sum(runs["counts"]) != size[0] * size[1]:
            raise ValueError(f"run lengths of {sum(runs['counts'])} pixels, an image of {size[0] * size[1]}")
        runs = tools.frPyObjects(runs, *size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools 2.0.11 with NumPy 2
        return tools.decode(runs).astype(bool)


def splits(root: Path, kind: Kind) -> tuple[str, ...]:
    """Names of the splits with annotations of ``kind``: "train" for ``instances_train2017.json``."""
    return tuple(_json_files(root, kind))


def read_annotations(root: Path, splits: Sequence[str], kind: Kind, excluded: frozenset[Path]) -> Annotated:
    """Read the JSON files of some splits. Classes are the categories by rising id, after "background" for instances.

    Args:
        root: folder of the data set.
        splits: names of the splits, as :func:`splits` gives them.
        kind: kind of the annotations.
        excluded: images to leave out.

    Raises:
        DataError: a file is not in COCO's format, its images are missing, or the splits have different categories.
    """
    files = _json_files(root, kind)
    pairs: list[tuple[Path, Path]] = []
    problems: list[Problem] = []
    entries: dict[Path, _Entry] = {}
    folders: dict[Path, Path] = {}
    categories: dict[int, str] = {}
    for split in splits:
        file = files[split]
        data = _read_json(file)
        try:
            file_categories = _categories(data)
            if categories and file_categories != categories:
                raise DataError(f"{file}: other categories than in {files[splits[0]].name}; all splits need the same")
            categories = file_categories
            folders[file] = file.with_suffix("")
            file_entries, file_problems = _image_entries(root, file, data, excluded, entries)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{file}: not COCO's {kind} format ({error!r})") from error
        entries |= file_entries
        pairs += [(path, file) for path in file_entries]
        problems += file_problems
    names = [categories[i] for i in sorted(categories)]
    names = [BACKGROUND, *names] if kind == "instances" else names
    class_of = {i: place + (kind == "instances") for place, i in enumerate(sorted(categories))}
    return Annotated(tuple(pairs), Labels(tuple(names)), CocoMasks(kind, class_of, entries, folders), tuple(problems))


def _categories(data: Mapping[str, Any]) -> dict[int, str]:
    """Category names by id; names that occur more than once get their id as a suffix."""
    categories = {int(c["id"]): str(c["name"]) for c in data["categories"]}
    names = list(categories.values())
    return {i: f"{name} ({i})" if names.count(name) > 1 else name for i, name in categories.items()}


def _image_entries(
    root: Path, file: Path, data: Mapping[str, Any], excluded: frozenset[Path], known: Mapping[Path, _Entry]
) -> tuple[dict[Path, _Entry], list[Problem]]:
    """Entries of a JSON file by image path, sorted; images that are missing, or ``known`` already, are problems."""
    folder = _image_folder(root, file, [str(image["file_name"]) for image in data["images"]])
    by_image: dict[int, list[Mapping[str, Any]]] = {}
    for annotation in data["annotations"]:
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    entries: dict[Path, _Entry] = {}
    problems: list[Problem] = []
    for image in sorted(data["images"], key=lambda image: str(image["file_name"])):
        path = folder / image["file_name"]
        if path in excluded:
            continue
        if path in entries or path in known:
            problems.append(Problem(path, f"occurs twice in {file.name}"))
        elif not path.is_file():
            problems.append(Problem(path, f"is in {file.name}, but not in the folder"))
        else:
            size = int(image["height"]), int(image["width"])
            entries[path] = _Entry(size, tuple(by_image.get(image["id"], ())))
    return entries, problems


def _json_files(root: Path, kind: Kind) -> dict[str, Path]:
    """JSON files by split."""
    files = {}
    if (root / "annotations").is_dir():
        for file in sorted((root / "annotations").glob("*.json")):
            if match := _NAME[kind].fullmatch(file.name):
                without_year = re.sub(r"\d{4}$", "", match[1])
                files[without_year if without_year in SPLIT_NAMES else match[1]] = file
    if kind == "instances":
        files |= {file.parent.name: file for file in sorted(root.glob(f"*/{_IN_SPLIT}"))}
    return files


def _image_folder(root: Path, file: Path, names: Sequence[str]) -> Path:
    """The folder with the images of a JSON file: the first usual folder that has one of the first 100 images."""
    match = next((m for pattern in _NAME.values() if (m := pattern.fullmatch(file.name))), None)
    if match is None:
        return file.parent
    candidates = list(_usual_folders(root, match[1]))
    for folder in candidates:
        if any((folder / name).is_file() for name in names[:100]):
            return folder
    tried = ", ".join(f"{folder.relative_to(root)}/" for folder in candidates)
    raise DataError(f"{file}: its images are in none of {tried}; move them into one of these folders")


def _usual_folders(root: Path, split: str) -> Iterator[Path]:
    for name in dict.fromkeys((split, re.sub(r"\d{4}$", "", split))):
        yield from (root / name, root / "images" / name)
    yield from (root / "images", root)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read as JSON ({' '.join(str(error).split())})") from error
    if not isinstance(data, dict):
        raise DataError(f"{file}: not COCO's format (a {type(data).__name__} at the top)")
    return data
