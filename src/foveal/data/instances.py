"""Images with one mask per object, for promptable models.

Layouts (detected from the files, or named in ``dataset.yaml``)::

    ROOT/annotations/instances_<split>.json     "coco_instances": COCO's JSON, or ROOT/<split>/_annotations.coco.json
    ROOT/images/<split>/*.jpg                   "polygons": YOLO's text files, in instance/<split>/ or labels/<split>/;
                                                one line per object: class x y x y ..., relative to width and height
    ROOT/images/*.jpg  ROOT/masks/*.png         "instance_ids": 0 is background, every other id one object; also with
                                                folders of splits, as in :mod:`foveal.data.segmentation`

Ids under ``ignore`` in ``dataset.yaml`` (default: 255) are not objects, unless a mask has no other ids: in a mask of
black and white, white is an object.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, InputError, nearest
from ..images.reading import read_image, read_mask
from . import coco
from .layout import (
    ALL,
    FILE,
    IMAGE_FOLDERS,
    SPLIT_NAMES,
    DatasetFile,
    Problem,
    UnknownLayoutError,
    by_stem,
    describe,
    draw_splits,
    images_in,
    raise_first,
    resolve_split,
    subfolders,
)
from .segmentation_layouts import LAYOUTS as CLASS_LAYOUTS
from .segmentation_layouts import mask_folders, mask_pairs

COCO, POLYGONS, IDS = "coco_instances", "polygons", "instance_ids"
LAYOUTS = (COCO, POLYGONS, IDS)
_TEXT_FOLDERS = ("instance", "instances", "labels", "label")
_TOLERANCE = 0.01  # by which outlines may leave the image, relative to its sides


@dataclass(frozen=True)
class Instance:
    """One object.

    Attributes:
        mask: pixels of the object, ``(H, W)``.
        category: its class, as numbered in the data; 0 if it has none.
        box: x1, y1, x2, y2 in pixels; x2 and y2 are the ends of the last pixels.
        area: in pixels; the value of the JSON file if it has one.
        iscrowd: whether it is a group of objects.
    """

    mask: NDArray[np.bool_]
    category: int
    box: tuple[float, float, float, float]
    area: float
    iscrowd: bool = False


Pair = tuple[Path, Path]
Reader = Callable[[Path, Path, tuple[int, int]], list[Instance]]  # arguments: image, file with its objects, (H, W)


@dataclass(frozen=True)
class InstanceData:
    """Images with their objects. Indexing reads: ``data[i] -> ((H, W, 3) uint8, [Instance, ...])``.

    Attributes:
        pairs: (image, file with its objects), sorted.
        read: reads the objects of a pair.
        layout: one of :data:`LAYOUTS`.
    """

    pairs: tuple[Pair, ...]
    read: Reader
    layout: str

    @classmethod
    def open(cls, root: str | Path, splits: Sequence[str]) -> InstanceData:
        """Find the pairs of ``splits`` below ``root``.

        Raises:
            DataError: no layout fits or several do, a split does not exist or is empty, or files have no partner.
            ConfigError: ``dataset.yaml`` has unknown keys or values.
        """
        root = Path(root)
        data, problems = open_splits(root, splits, describe(root))
        raise_first(problems, root)
        if not data.pairs:
            raise DataError(f"{root}: no images in {' + '.join(splits)}")
        return data

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], list[Instance]]:
        """Read one image and its objects; objects without pixels are left out.

        Raises:
            DataError: a file is unreadable, or image and objects have different sizes.
            DependencyError: the objects are polygons or run lengths, and pycocotools is not installed.
        """
        path, file = self.pairs[index]
        try:
            image = read_image(path)
        except InputError as error:
            raise DataError(str(error)) from error
        return image, self.read(path, file, (image.shape[0], image.shape[1]))

    def name(self, index: int) -> Path:
        """The image file of a pair."""
        return self.pairs[index][0]


_Opened = tuple[list[Pair], Reader, Sequence[Problem]]


class _Match(NamedTuple):
    """A layout that fits a folder."""

    layout: str
    splits: tuple[str, ...]
    open: Callable[[Sequence[str]], _Opened]


def layout_of(root: Path, described: DatasetFile) -> str:
    """The layout of a folder, one of :data:`LAYOUTS`; empty if none fits.

    Raises:
        DataError: several fit, or the one named in ``dataset.yaml`` does not.
    """
    match = _find(root, described)
    return match.layout if match else ""


def has_outlines(root: Path) -> bool:
    """Whether a folder contains images with outlines in text files."""
    return bool(_text_folders(root))


def splits_of(root: Path, described: DatasetFile) -> tuple[str, ...]:
    """Names of the splits below a folder; empty if no layout fits."""
    match = _find(root, described)
    return match.splits if match else ()


def default_split(root: Path) -> str:
    """The split to evaluate: "test" if it exists, else "val", else "all"."""
    names = splits_of(root, describe(root))
    return next((name for name in ("test", "testing", "val", "valid", "validation", ALL) if name in names), "val")


def open_splits(root: Path, splits: Sequence[str], described: DatasetFile) -> tuple[InstanceData, tuple[Problem, ...]]:
    """Open splits as :meth:`InstanceData.open` does, but return the problems instead of raising the first.

    Raises:
        DataError: no layout fits or several do, or a split does not exist.
    """
    match = _find(root, described)
    if match is None:
        raise UnknownLayoutError(
            f"{root}: no layout with objects fits ({', '.join(LAYOUTS)}); docs/data.md shows a tree of each. The"
            " simplest is images/a.jpg and masks/a.png, with 0 for background and one id for each object"
        )
    pairs, read, problems = match.open([resolve_split(split, match.splits, root) for split in splits])
    return InstanceData(tuple(pairs), read, match.layout), tuple(problems)


def _find(root: Path, described: DatasetFile) -> _Match | None:
    name = described.layout
    if name and name not in LAYOUTS:
        if name in {layout.name for layout in CLASS_LAYOUTS}:
            raise DataError(f"{root / FILE}: layout {name!r} has classes; layouts of objects: {', '.join(LAYOUTS)}")
        raise DataError(f"{root / FILE}: unknown layout {name!r}{nearest(name, LAYOUTS)}")
    matches = []
    if name in ("", COCO) and (splits := coco.splits(root, "instances")):
        matches.append(_Match(COCO, splits, lambda splits: _open_coco(root, splits, described)))
    if name in ("", POLYGONS) and (texts := _text_folders(root)):
        matches.append(_Match(POLYGONS, tuple(texts), lambda splits: _open_polygons(texts, splits, root, described)))
    if name == IDS or not (name or matches):
        matches += _match_ids(root, described)
    if len(matches) > 1:
        names = " and ".join(match.layout for match in matches)
        raise DataError(f"{root}: fits the layouts {names}; name one in {FILE}: 'layout: {matches[0].layout}'")
    if name and not matches:
        raise DataError(f"{root}: its folders are not those of layout {name!r}, which {FILE} names")
    return matches[0] if matches else None


def _match_ids(root: Path, described: DatasetFile) -> list[_Match]:
    """The layout of id masks, unless ``dataset.yaml`` describes the masks as classes."""
    masks = mask_folders(root)
    if not masks:
        return []
    if not described.layout and (described.names or described.masks == "colours"):
        raise DataError(
            f"{root / FILE}: its names say that the masks contain classes; write 'layout: {IDS}' instead if each id"
            " is one object"
        )
    splits = ("train", "val", ALL) if described.val_share and set(masks) == {ALL} else tuple(masks)
    return [_Match(IDS, splits, lambda splits: _open_ids(masks, splits, root, described))]


# ---- COCO's JSON


def _open_coco(root: Path, splits: Sequence[str], described: DatasetFile) -> _Opened:
    annotated = coco.read_annotations(root, splits, "instances", described.excluded(root))

    def read(image: Path, file: Path, size: tuple[int, int]) -> list[Instance]:
        entry = annotated.reader.entries[image]
        if entry.size != size:
            raise DataError(
                f"{file}: says {image.name} has {entry.size[1]}x{entry.size[0]} pixels, it has {size[1]}x{size[0]}"
            )
        try:
            objects = [_read_annotation(annotation, size) for annotation in entry.annotations]
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise DataError(f"{file}: damaged annotation of {image.name} ({error!r})") from error
        return [instance for instance in objects if instance is not None]

    return list(annotated.pairs), read, annotated.problems


def _read_annotation(annotation: Any, size: tuple[int, int]) -> Instance | None:
    mask = coco.object_mask(annotation["segmentation"], size)
    if mask is None or not mask.any():
        return None
    box = _box(mask)
    if "bbox" in annotation:
        x, y, width, height = map(float, annotation["bbox"])
        if width > 0 and height > 0:
            box = (x, y, x + width, y + height)
    area = float(annotation.get("area", mask.sum()))
    return Instance(mask, int(annotation["category_id"]), box, area, bool(annotation.get("iscrowd", 0)))


# ---- YOLO's text


def _text_folders(root: Path) -> dict[str, Pair]:
    """Folders of images and of text files by split; the split is "all" if there are no folders for splits."""
    images = [root / name for name in IMAGE_FOLDERS if (root / name).is_dir()]
    texts = [root / name for name in _TEXT_FOLDERS if (root / name).is_dir()]
    candidates = [(ALL, i, t) for i in images for t in texts if images_in(i)]
    candidates += [(split.name, split, t / split.name) for i in images for t in texts for split in subfolders(i)]
    for split in subfolders(root):
        candidates += [(split.name, split / i, split / t) for i in IMAGE_FOLDERS for t in _TEXT_FOLDERS]
    folders: dict[str, Pair] = {}
    for split, image_folder, text_folder in candidates:
        if not (text_folder.is_dir() and any(text_folder.glob("*.txt")) and images_in(image_folder)):
            continue
        without_year = re.sub(r"\d{4}$", "", split)  # as in val2017
        name = without_year if without_year in SPLIT_NAMES else split
        if name in folders:
            raise DataError(
                f"{root}: outlines of {name!r} in {folders[name][1]} and in {text_folder}: keep one of them"
            )
        folders[name] = (image_folder, text_folder)
    return folders


def _open_polygons(folders: dict[str, Pair], splits: Sequence[str], root: Path, described: DatasetFile) -> _Opened:
    """As in YOLO, an image without a text file has no objects; a text file without an image is a problem."""
    excluded = described.excluded(root)
    excluded_stems = {p.stem for p in excluded}
    pairs: list[Pair] = []
    problems: list[Problem] = []
    for split in splits:
        image_folder, text_folder = folders[split]
        images = by_stem((p for p in images_in(image_folder) if p not in excluded), image_folder)
        texts = {p.stem: p for p in sorted(text_folder.glob("*.txt")) if p not in excluded}
        pairs += [(images[stem][0], text) for stem, text in texts.items() if stem in images]
        problems += [
            Problem(text, "has no image; partners have the same stem")
            for stem, text in texts.items()
            if stem not in images and stem not in excluded_stems and stem != "classes"
        ]
        problems += [
            Problem(p, f"has the same stem as {same[0].name}; give it another name")
            for same in images.values()
            for p in same[1:]
        ]
    return sorted(pairs), _read_polygons, problems


def _read_polygons(image: Path, file: Path, size: tuple[int, int]) -> list[Instance]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as text ({error})") from error
    objects = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        category, outline = _parse_outline(line.split(), f"{file}: line {number}")
        mask = coco.object_mask([(outline * size[::-1]).ravel().tolist()], size)
        if mask is not None and mask.any():
            objects.append(Instance(mask, category, _box(mask), float(mask.sum())))
    return objects


def _parse_outline(words: Sequence[str], where: str) -> tuple[int, NDArray[np.float64]]:
    """The class of a line, and its points, ``(N, 2)`` x and y of 0..1."""
    try:
        category, values = int(words[0]), np.array(words[1:], np.float64)
    except ValueError:
        raise DataError(f"{where}: expected numbers only: a class and an outline, 'class x y x y ...'") from None
    if len(values) == 4:
        raise DataError(f"{where}: a box, not an outline; masks need 'class x y x y ...' with at least three points")
    if len(values) < 6 or len(values) % 2:
        raise DataError(f"{where}: {len(values)} numbers after the class; an outline has x and y of 3 points or more")
    if not ((values >= -_TOLERANCE) & (values <= 1 + _TOLERANCE)).all():
        raise DataError(f"{where}: outlines are relative to width and height, 0 to 1, not in pixels")
    return category, values.clip(0, 1).reshape(-1, 2)


# ---- masks of ids


def _open_ids(folders: dict[str, Pair], splits: Sequence[str], root: Path, described: DatasetFile) -> _Opened:
    excluded = described.excluded(root)
    pairs: list[Pair] = []
    problems: list[Problem] = []
    for split in splits:
        images, masks = folders.get(split) or folders[ALL]
        split_pairs, split_problems = mask_pairs(images, masks, excluded)
        if split not in folders:
            drawn = draw_splits((image.stem for image, _ in split_pairs), described)[split]
            split_pairs = [pair for pair in split_pairs if pair[0].stem in drawn]
        pairs += split_pairs
        problems += split_problems

    def read(image: Path, file: Path, size: tuple[int, int]) -> list[Instance]:
        try:
            ids = read_mask(file)
        except InputError as error:
            raise DataError(str(error)) from error
        if ids.shape != size:
            raise DataError(
                f"{file}: mask of {ids.shape[1]}x{ids.shape[0]} (W x H) for the image {image.name} of "
                f"{size[1]}x{size[0]}"
            )
        objects = [int(i) for i in np.unique(ids) if i]
        objects = [i for i in objects if i not in described.ignore] or objects
        return [Instance(mask, 0, _box(mask), float(mask.sum())) for mask in (ids == i for i in objects)]

    return pairs, read, problems


def _box(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
