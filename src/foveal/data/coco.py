"""Class masks from COCO's JSON: panoptic annotations from their PNG files, instances from polygons or run lengths.

Source: the data format of Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014, and of Kirillov et al.,
"Panoptic Segmentation", CVPR 2019.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, InputError
from ..images.reading import read_image
from ..info import Labels, ignore_id
from .coco_objects import Annotation, Entry, name_of, note_objects, read_objects, some_of
from .label_files import Id, as_id, begins_with_key, begins_with_list, is_file, named_file, read_json, shown
from .labels import class_difference
from .layout import ALL, FILE, SPLIT_NAMES, DatasetFile, Problem, draw_splits, subfolders
from .masks import mask_type
from .outlines import DAMAGE, Annotated, OutlineMasks, Size, damaged, drawn_classes, reason_of

Kind = Literal["panoptic", "instances"]
_NAME = {"panoptic": re.compile(r"panoptic_(.+)\.json"), "instances": re.compile(r"instances_(.+)\.json")}
_IN_SPLIT = "_annotations.coco.json"  # some exporters write it into the folder of images of a split
_WHOLE = ("result.json", "annotations.json", "labels.json", "instances.json", "coco.json", _IN_SPLIT)  # without splits
_ADDRESS = re.compile(r"(https?|s3|gs|azure-blob)://|/data/(upload|local-files)/|\.\./.*/upload/")
_FEW = 10  # JSON files in a folder; more of them belong to one image each


@dataclass(frozen=True)
class PanopticMasks:
    """Reads class masks from panoptic PNG files, ``(image path, JSON path) -> (H, W) uint8``.

    Attributes:
        root: folder of the data set.
        class_of: class by category id.
        entries: entries of the JSON files, by image path.
    """

    root: Path
    class_of: Mapping[Id, int]
    entries: Mapping[Path, Entry]

    def __call__(self, image: Path, mask: Path, /) -> NDArray[np.unsignedinteger]:
        """Read the annotation of one image.

        Raises:
            DataError: the annotation is damaged, has an unknown category, or its PNG file is missing.
        """
        try:
            return self._read(self.entries[image], mask.with_suffix(""))
        except DAMAGE as error:
            raise damaged(mask, image, error) from error

    def _read(self, entry: Entry, folder: Path) -> NDArray[np.unsignedinteger]:
        """Segment ids are R + 256 G + 65536 B; 0 is a pixel without annotation."""
        if len(entry.annotations) != 1:
            raise ValueError(f"{len(entry.annotations)} panoptic annotations instead of one")
        path = named_file(folder, str(entry.annotations[0]["file_name"]), self.root)
        try:
            rgb = read_image(path).astype(np.int64)
        except InputError as error:
            raise DataError(str(error)) from error
        segments = rgb[..., 0] + (rgb[..., 1] << 8) + (rgb[..., 2] << 16)
        classes: dict[int, int] = {0: ignore_id(len(self.class_of))}
        for segment in entry.annotations[0]["segments_info"]:
            classes[int(segment["id"])] = self._class(segment["category_id"])
        ids, place = np.unique(segments, return_inverse=True)
        unknown = ids[~np.isin(ids, list(classes))]
        if len(unknown):
            pixels = int((segments == unknown[0]).sum())
            raise DataError(f"{path}: segment {unknown[0]} ({pixels} pixels) has no entry in the JSON file")
        return np.array([classes[int(i)] for i in ids], mask_type(len(self.class_of)))[place].reshape(segments.shape)

    def _class(self, category: object) -> int:
        if (number := as_id(category)) not in self.class_of:
            raise ValueError(f"category {number} is not in the list of categories")
        return self.class_of[number]


def splits(root: Path, kind: Kind, described: DatasetFile) -> tuple[str, ...]:
    """Names of the splits with annotations of ``kind``: "train" for ``instances_train2017.json``."""
    return tuple(_json_files(root, kind, described))


def read_annotations(root: Path, splits: Sequence[str], kind: Kind, described: DatasetFile) -> Annotated:
    """Read the JSON files of some splits.

    The classes are the categories by rising id, or ``names`` of ``dataset.yaml``; before them "background" for
    instances.

    Args:
        root: folder of the data set.
        splits: names of the splits, as :func:`splits` gives them.
        kind: kind of the annotations.
        described: ``dataset.yaml``.

    Raises:
        DataError: a file is not in COCO's format, its images are missing, or the splits have different categories.
    """
    files = _json_files(root, kind, described)
    pairs: list[tuple[Path, Path]] = []
    problems: list[Problem] = []
    notes: list[str] = []
    entries: dict[Path, Entry] = {}
    names: tuple[str, ...] = ()
    class_of: dict[Id, int] = {}
    for split in splits:
        file = files[split]
        data = read_json(file)
        try:
            file_names, file_class_of = _classes(_categories(data), kind, described, root, file.name)
            difference = class_difference(names or file_names, file_names)
            if any(class_of.get(category, place) != place for category, place in file_class_of.items()):
                difference = difference or "the same ids are other categories"
            if difference:
                raise DataError(f"{file}: other categories than in {files[splits[0]].name}: {difference}")
            names, class_of = file_names, class_of | file_class_of
            drawn_from = list(files.values()).count(file) > 1  # one file for all splits, which are drawn at random
            others = {} if drawn_from else entries
            found = _image_entries(root, file, data, described.excluded(root), others)
        except DAMAGE as error:
            raise DataError(f"{file}: not COCO's {kind} format ({reason_of(error)})") from error
        if drawn_from:
            drawn = draw_splits((path.stem for path in found.entries), described)[split]
            found = found._replace(entries={path: e for path, e in found.entries.items() if path.stem in drawn})
        entries |= found.entries
        pairs += [(path, file) for path in found.entries]
        problems += found.problems
        notes += found.notes
    if kind == "panoptic":
        reader = PanopticMasks(root, class_of, entries)
    else:
        reader = OutlineMasks(partial(read_objects, entries), class_of, len(names))
        notes += note_objects(pairs, entries)
    return Annotated(tuple(pairs), Labels(names, described.palette), reader, tuple(problems), tuple(notes))


# ---- categories and images


def _list(data: Annotation, key: str) -> list[Annotation]:
    """A list of objects of a JSON file."""
    if key not in data:
        raise ValueError(f"there is no {key!r}")
    value = data[key]
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError(f"{key!r} is not a list of objects")
    return value


def _categories(data: Annotation) -> dict[Id, str]:
    """Category names by id, numbers first; names that occur more than once get their id as a suffix."""
    categories: dict[Id, str] = {}
    for category in _list(data, "categories"):
        number, name = as_id(category.get("id")), category.get("name")
        if not isinstance(name, str | int) or not str(name).strip():
            raise ValueError(f"category {number} has no name")
        if categories.setdefault(number, str(name)) != str(name):
            raise ValueError(f"two categories have the id {number}: {shown(categories[number])} and {shown(name)}")
    if not categories:
        raise ValueError("its list of categories is empty")
    names = list(categories.values())
    categories = {i: f"{name} ({i})" if names.count(name) > 1 else name for i, name in categories.items()}
    return dict(sorted(categories.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def _classes(
    categories: Mapping[Id, str], kind: Kind, described: DatasetFile, root: Path, source: str
) -> tuple[tuple[str, ...], dict[Id, int]]:
    """Names of the classes, and the class of each category."""
    if kind == "instances":
        return drawn_classes(categories, described, root, "the JSON files")
    names = tuple(categories.values())
    if described.names not in ((), names):
        raise DataError(f"{root / FILE}: 'names' are not the categories of the JSON files; leave them out")
    return names, {category: place for place, category in enumerate(categories)}


class _Found(NamedTuple):
    """Images of a JSON file."""

    entries: dict[Path, Entry]  # by path, sorted
    problems: list[Problem]
    notes: list[str]


def _image_entries(
    root: Path, file: Path, data: Annotation, excluded: frozenset[Path], known: Mapping[Path, Entry]
) -> _Found:
    """The images of a JSON file; those that are missing, or ``known`` already, are problems."""
    images = {as_id(image.get("id")): image for image in _list(data, "images")}
    if not images:
        raise ValueError("its list of images is empty")
    if len(images) < len(data["images"]):
        raise ValueError("two images have the same id")
    for number, image in images.items():
        if not isinstance(image.get("file_name"), str) or not image["file_name"]:
            raise ValueError(f"image {number} has no file_name")
    folder = _image_folder(root, file, [image["file_name"] for image in images.values()])
    found = _Found({}, [], [])
    by_image = _by_image(file, _list(data, "annotations"), images, found)
    for number, image in sorted(images.items(), key=lambda item: item[1]["file_name"]):
        try:
            path = _file_of(folder, image["file_name"], root)
        except ValueError as error:
            found.problems.append(Problem(file, f"image {number}: {error}"))
            continue
        if path in excluded:
            continue
        if path in found.entries or path in known:
            found.problems.append(Problem(path, f"occurs twice in {file.name}"))
        elif not is_file(path):
            found.problems.append(Problem(path, f"is in {file.name}, but not in the folder"))
        else:
            found.entries[path] = Entry(_size(image), tuple(by_image.get(number, ())))
    return found


def _size(image: Annotation) -> Size | None:
    """(H, W) as the file gives it; some programs leave it out."""
    height, width = (image.get(key) or 0 for key in ("height", "width"))
    try:
        return (int(float(height)), int(float(width))) if height and width else None
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{shown(image['file_name'])} has the size {shown([height, width])}") from None


def _by_image(
    file: Path, annotations: Sequence[Annotation], images: Mapping[Id, Annotation], found: _Found
) -> dict[Id, list[Annotation]]:
    """Annotations by image; those of no image are a note, or a problem if they are all."""
    by_image: dict[Id, list[Annotation]] = {}
    orphans: list[str] = []
    for annotation in annotations:
        try:
            number = as_id(annotation.get("image_id"))
        except ValueError:
            number = ""
        if number in images:
            by_image.setdefault(number, []).append(annotation)
        else:
            orphans.append(f"{name_of(annotation)} of image {shown(annotation.get('image_id'))}")
    if orphans:
        text = f"{len(orphans)} of {len(annotations)} annotations are of images that it does not list"
        text += f": {some_of(orphans)}"
        if by_image:
            found.notes.append(f"{file.name}: {text}; they are left out")
        else:
            found.problems.append(Problem(file, text))
    return by_image


def _json_files(root: Path, kind: Kind, described: DatasetFile) -> dict[str, Path]:
    """JSON files by split. A single file that is not of a usual split has all images; ``val_share`` divides them."""
    files: dict[str, Path] = {}
    for file in sorted((root / "annotations").glob("*.json")):
        if match := _NAME[kind].fullmatch(file.name):
            without_year = re.sub(r"\d{4}$", "", match[1]).lower()  # CVAT has subsets called Train and Validation
            files[without_year if without_year in SPLIT_NAMES else match[1]] = file
    if kind == "instances":
        files |= {file.parent.name: file for file in sorted(root.glob(f"*/{_IN_SPLIT}"))}
        if not files:
            plain = [(name, folder / f"{name}.json") for folder in (root, root / "annotations") for name in SPLIT_NAMES]
            files = {name: file for name, file in plain if _is_coco(file)}
        if not files and (whole := _whole_file(root)):
            files = {ALL: whole}
    if described.val_share and len(files) == 1 and not files.keys() & set(SPLIT_NAMES):
        files = dict.fromkeys(("train", "val", ALL), *files.values())
    return files


def _whole_file(root: Path) -> Path | None:
    """The file with the annotations of all images: one of the usual names, else the only one in COCO's format."""
    if usual := next((root / name for name in _WHOLE if _is_coco(root / name)), None):
        return usual
    others = [file for folder in (root, root / "annotations") for file in islice(sorted(folder.glob("*.json")), _FEW)]
    found = [file for file in others if len(others) < _FEW and _is_coco(file)]
    return found[0] if len(found) == 1 else None


def _is_coco(file: Path) -> bool:
    """Whether a file whose name other programs use, too, has lists of COCO's format."""
    return file.is_file() and begins_with_list(file, "images", "categories") and not begins_with_key(file, "shapes")


def _file_of(folder: Path, name: str, root: Path) -> Path:
    """Path of an image. Those of Label Studio's server, which names them by addresses, may have been put into a folder.

    Raises:
        ValueError: the name leads out of the data set, and is no such address.
    """
    if _ADDRESS.match(name):
        name = unquote(urlsplit(name).path).rpartition("/")[2]
    return named_file(folder, name, root)


def _image_folder(root: Path, file: Path, names: Sequence[str]) -> Path:
    """The folder with the images of a JSON file: the first usual folder that has one of the first 100 images."""
    if file.name == _IN_SPLIT:
        return file.parent
    match = next((m for pattern in _NAME.values() if (m := pattern.fullmatch(file.name))), None)
    candidates = list(dict.fromkeys(_usual_folders(root, match[1] if match else file.stem)))
    refused: Path | None = None
    for folder, name in ((folder, name) for folder in candidates if folder.is_dir() for name in names[:100]):
        try:
            if is_file(_file_of(folder, name, root)):
                return folder
        except ValueError:
            refused = refused or folder
    if refused:  # the name is a problem of its own
        return refused
    tried = ", ".join(f"{folder.relative_to(root)}/" for folder in candidates)
    looked = f"; {shown(names[0])} was looked for" if names else ""
    raise DataError(f"{file}: its images are in none of {tried}{looked}; move them into one of these folders")


def _usual_folders(root: Path, split: str) -> Iterator[Path]:
    for name in dict.fromkeys((split, re.sub(r"\d{4}$", "", split))):
        yield from (root / name, root / "images" / name)
    yield from (root / "images", root / "data", root, *subfolders(root)[:_FEW])
