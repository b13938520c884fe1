"""Images with one mask for each object, for promptable models.

Layouts (told apart by what lies where, or named in ``dataset.yaml``)::

    ROOT/annotations/instances_<split>.json     "coco_instances": COCO's, or ROOT/<split>/_annotations.coco.json
    ROOT/images/<split>/*.jpg                   "polygons": YOLO's text, in instance/<split>/ or labels/<split>/: a
                                                class and x y x y ..., shares of width and height, a line per object
    ROOT/images/*.jpg  ROOT/masks/*.png         "instance_ids": 0 is background, every other id one object; also with
                                                folders of splits, as :mod:`foveal.data.segmentation` has them

Ids under ``ignore`` in ``dataset.yaml`` (255) are no objects, unless a mask has no other: one in black and white is an
object.
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
    by_stem,
    describe,
    drawn_splits,
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
_SLACK = 0.01  # by which outlines may leave the image, as a share of its sides


@dataclass(frozen=True)
class Instance:
    """One object.

    Attributes:
        mask: its pixels, ``(H, W)``.
        category: its class, as the data numbers them; 0 where it has none.
        box: x1, y1, x2, y2 in pixels, right and bottom being the ends of the last pixels.
        area: in pixels; COCO's own figure where there is one.
        iscrowd: whether it stands for many.
    """

    mask: NDArray[np.bool_]
    category: int
    box: tuple[float, float, float, float]
    area: float
    iscrowd: bool = False


Pair = tuple[Path, Path]
Reader = Callable[[Path, Path, tuple[int, int]], list[Instance]]  # image, file with its objects, (H, W)


@dataclass(frozen=True)
class InstanceData:
    """Images with their objects. Indexing reads: ``data[i] -> ((H, W, 3) uint8, [Instance, ...])``.

    Attributes:
        pairs: (image, file that holds its objects), sorted.
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
            DataError: no layout fits or several do, no such split, files without a partner, nothing at all.
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
        """Read one image and its objects; objects without a pixel are left out.

        Raises:
            DataError: unreadable, or of sizes that do not fit.
            DependencyError: polygons and runs need pycocotools, which is not installed.
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


class _Found(NamedTuple):
    layout: str
    splits: tuple[str, ...]
    open: Callable[[Sequence[str]], tuple[list[Pair], Reader, Sequence[Problem]]]


def layout_of(root: Path, described: DatasetFile) -> str:
    """Which of :data:`LAYOUTS` a folder has; empty where it has none.

    Raises:
        DataError: several fit, or ``dataset.yaml`` names one that does not.
    """
    found = _find(root, described)
    return found.layout if found else ""


def has_outlines(root: Path) -> bool:
    """Whether a folder holds images with outlines in text files."""
    return bool(_text_folders(root))


def splits_of(root: Path, described: DatasetFile) -> tuple[str, ...]:
    """Names of the splits below a folder; none: no layout fits."""
    found = _find(root, described)
    return found.splits if found else ()


def default_split(root: Path) -> str:
    """ "test" where there is one, else "val", else all there is."""
    have = splits_of(root, describe(root))
    return next((name for name in ("test", "testing", "val", "valid", "validation", ALL) if name in have), "val")


def open_splits(root: Path, splits: Sequence[str], described: DatasetFile) -> tuple[InstanceData, tuple[Problem, ...]]:
    """What :meth:`InstanceData.open` finds, with what is wrong beside it instead of raised.

    Raises:
        DataError: no layout fits or several do, or no such split.
    """
    found = _find(root, described)
    if found is None:
        raise DataError(
            f"{root}: no layout with objects fits ({', '.join(LAYOUTS)}); docs/data.md shows a tree of each, the"
            " simplest being images/a.jpg beside masks/a.png, 0 for background and an id for each object"
        )
    pairs, read, problems = found.open([resolve_split(split, found.splits, root) for split in splits])
    return InstanceData(tuple(pairs), read, found.layout), tuple(problems)


def _find(root: Path, described: DatasetFile) -> _Found | None:
    wanted = described.layout
    if wanted and wanted not in LAYOUTS:
        if wanted in {layout.name for layout in CLASS_LAYOUTS}:
            raise DataError(f"{root / FILE}: layout {wanted!r} has classes; objects are in {', '.join(LAYOUTS)}")
        raise DataError(f"{root / FILE}: unknown layout {wanted!r}{nearest(wanted, LAYOUTS)}")
    fitting = []
    if wanted in ("", COCO) and (splits := coco.splits(root, "instances")):
        fitting.append(_Found(COCO, splits, lambda splits: _open_coco(root, splits, described)))
    if wanted in ("", POLYGONS) and (texts := _text_folders(root)):
        fitting.append(_Found(POLYGONS, tuple(texts), lambda splits: _open_polygons(texts, splits, root, described)))
    if wanted == IDS or not (wanted or fitting):
        masks = mask_folders(root)
        if masks and not wanted and (described.names or described.masks == "colours"):
            raise DataError(
                f"{root / FILE}: its names say that the masks hold classes; write 'layout: {IDS}' instead if each id"
                " is one object"
            )
        if masks:
            drawn = ("train", "val", ALL) if described.val_share and set(masks) == {ALL} else tuple(masks)
            fitting.append(_Found(IDS, drawn, lambda splits: _open_ids(masks, splits, root, described)))
    if len(fitting) > 1:
        names = " and ".join(found.layout for found in fitting)
        raise DataError(f"{root}: fits the layouts {names}: name one in {FILE}, as 'layout: {fitting[0].layout}'")
    if wanted and not fitting:
        raise DataError(f"{root}: is not laid out as {wanted!r}, which {FILE} names")
    return fitting[0] if fitting else None


# ---- COCO's JSON


def _open_coco(
    root: Path, splits: Sequence[str], described: DatasetFile
) -> tuple[list[Pair], Reader, Sequence[Problem]]:
    found = coco.read_annotations(root, splits, "instances", described.excluded(root))

    def read(image: Path, file: Path, size: tuple[int, int]) -> list[Instance]:
        entry = found.reader.entries[image]
        if entry.size != size:
            raise DataError(
                f"{file}: says {image.name} has {entry.size[1]}x{entry.size[0]} pixels, it has {size[1]}x{size[0]}"
            )
        try:
            return [x for x in (_of_annotation(annotation, size) for annotation in entry.annotations) if x]
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise DataError(f"{file}: damaged annotation of {image.name} ({error!r})") from error

    return list(found.pairs), read, found.problems


def _of_annotation(annotation: Any, size: tuple[int, int]) -> Instance | None:
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
    """Folders of images and of texts by split, "all" where there are no splits."""
    images = [root / name for name in IMAGE_FOLDERS if (root / name).is_dir()]
    texts = [root / name for name in _TEXT_FOLDERS if (root / name).is_dir()]
    candidates = [(ALL, i, t) for i in images for t in texts if images_in(i)]
    candidates += [(split.name, split, t / split.name) for i in images for t in texts for split in subfolders(i)]
    for split in subfolders(root):
        candidates += [(split.name, split / i, split / t) for i in IMAGE_FOLDERS for t in _TEXT_FOLDERS]
    found: dict[str, Pair] = {}
    for split, of_images, of_texts in candidates:
        if not (of_texts.is_dir() and any(of_texts.glob("*.txt")) and images_in(of_images)):
            continue
        bare = re.sub(r"\d{4}$", "", split)  # of the year, as in val2017
        name = bare if bare in SPLIT_NAMES else split
        if name in found:
            raise DataError(f"{root}: outlines of {name!r} in {found[name][1]} and in {of_texts}: keep one of them")
        found[name] = (of_images, of_texts)
    return found


def _open_polygons(
    folders: dict[str, Pair], splits: Sequence[str], root: Path, described: DatasetFile
) -> tuple[list[Pair], Reader, Sequence[Problem]]:
    """An image without a text has no object, as YOLO has it; a text without an image is a mistake."""
    excluded = described.excluded(root)
    pairs: list[Pair] = []
    problems: list[Problem] = []
    for split in splits:
        of_images, of_texts = folders[split]
        images = by_stem((p for p in images_in(of_images) if p not in excluded), of_images)
        texts = {p.stem: p for p in sorted(of_texts.glob("*.txt")) if p not in excluded}
        pairs += [(images[stem][0], text) for stem, text in texts.items() if stem in images]
        gone = {p.stem for p in excluded}
        problems += [
            Problem(text, "has no image; partners have the same stem")
            for stem, text in texts.items()
            if stem not in images and stem not in gone and stem != "classes"
        ]
        problems += [Problem(p, f"shares its stem with {same[0].name}") for same in images.values() for p in same[1:]]
    return sorted(pairs), _read_polygons, problems


def _read_polygons(image: Path, file: Path, size: tuple[int, int]) -> list[Instance]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as text ({error})") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        category, outline = _outline(line.split(), f"{file}: line {number}")
        mask = coco.object_mask([(outline * size[::-1]).ravel().tolist()], size)
        if mask is not None and mask.any():
            found.append(Instance(mask, category, _box(mask), float(mask.sum())))
    return found


def _outline(words: Sequence[str], where: str) -> tuple[int, NDArray[np.float64]]:
    """A class, and ``(N, 2)`` x and y of 0..1."""
    try:
        category, values = int(words[0]), np.array(words[1:], np.float64)
    except ValueError:
        raise DataError(f"{where}: write a class and an outline, 'class x y x y ...', numbers all") from None
    if len(values) == 4:
        raise DataError(f"{where}: a box, not an outline: masks need 'class x y x y ...' with three points at least")
    if len(values) < 6 or len(values) % 2:
        raise DataError(f"{where}: {len(values)} numbers after the class; an outline has x and y of 3 points or more")
    if not ((values >= -_SLACK) & (values <= 1 + _SLACK)).all():
        raise DataError(f"{where}: outlines are shares of width and height, 0 to 1, not pixels")
    return category, values.clip(0, 1).reshape(-1, 2)


# ---- masks of ids


def _open_ids(
    folders: dict[str, Pair], splits: Sequence[str], root: Path, described: DatasetFile
) -> tuple[list[Pair], Reader, Sequence[Problem]]:
    excluded = described.excluded(root)
    pairs: list[Pair] = []
    problems: list[Problem] = []
    for split in splits:
        images, masks = folders.get(split) or folders[ALL]
        found, unfit = mask_pairs(images, masks, excluded)
        if split not in folders:
            drawn = drawn_splits((image.stem for image, _ in found), described)[split]
            found = [pair for pair in found if pair[0].stem in drawn]
        pairs += found
        problems += unfit

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
        kept = [i for i in objects if i not in described.ignore] or objects
        return [Instance(mask, 0, _box(mask), float(mask.sum())) for mask in (ids == i for i in kept)]

    return pairs, read, problems


def _box(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
