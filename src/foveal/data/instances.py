"""Images with one mask per object, for promptable models.

Layouts (detected from the files, or named in ``dataset.yaml``)::

    ROOT/annotations/instances_<split>.json     "coco_instances": COCO's JSON, or ROOT/<split>/_annotations.coco.json
    ROOT/images/<split>/*.jpg                   "polygons": YOLO's text files, in instance/<split>/ or labels/<split>/;
                                                one line per object: class x y x y ..., relative to width and height
    ROOT/*.jpg  ROOT/*.json                     "labelme": labelme's JSON, beside the images
    ROOT/images/*.jpg  ROOT/masks/*.png         "instance_ids": 0 is background, every other id one object; also with
                                                folders of splits, as in :mod:`foveal.data.segmentation`

Ids under ``ignore`` in ``dataset.yaml`` (default: 255) are not objects, unless a mask has no other ids: in a mask of
black and white, white is an object.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, InputError, nearest
from ..images.formats import LIMIT, pixel_limit
from ..images.reading import read_image, read_mask
from ..images.regions import mask_of
from ..info import ignore_id
from .brush_masks import brush_mask_error, find_brush_mask
from .layout import (
    ALL,
    FILE,
    DatasetFile,
    Problem,
    UnknownLayoutError,
    describe,
    draw_splits,
    raise_first,
    resolve_split,
)
from .outline_layouts import OUTLINE_LAYOUTS, OutlineLayout
from .outlines import Outline, OutlineMasks
from .parts import mask_pairs
from .segmentation_layouts import LAYOUTS as CLASS_LAYOUTS
from .segmentation_layouts import mask_folders

IDS = "instance_ids"
LAYOUTS = (*OUTLINE_LAYOUTS, IDS)
_IMAGES = 4  # times the largest image, for all masks of an image together


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
        if brush := find_brush_mask(root):
            raise brush_mask_error(brush)
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
    for layout, outlines in OUTLINE_LAYOUTS.items():
        if name in ("", layout) and (splits := outlines.splits(root, described)):
            matches.append(_Match(layout, splits, partial(_open_outlines, root, outlines, described)))
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


# ---- outlines


def _open_outlines(root: Path, layout: OutlineLayout, described: DatasetFile, splits: Sequence[str]) -> _Opened:
    annotated = layout.open(root, splits, described)
    outlines = annotated.reader
    assert isinstance(outlines, OutlineMasks)
    ignored = ignore_id(outlines.num_classes)

    def read(image: Path, file: Path, size: tuple[int, int]) -> list[Instance]:
        # Regions that are ignored are no objects.
        found = (o for o in outlines.read(image, file, size) if outlines.class_of.get(o.category) != ignored)
        solid = [outline for outline in found if outline.has_pixels]
        _check_memory(len(solid), size, file)
        return [_instance(outline, mask_of(outline.runs, size)) for outline in solid]

    return [pair for pair in annotated.pairs if pair[1].exists()], read, annotated.problems


def _instance(outline: Outline, mask: NDArray[np.bool_]) -> Instance:
    area = float(mask.sum()) if outline.area is None else outline.area
    category = outline.category if isinstance(outline.category, int) else 0
    return Instance(mask, category, outline.box or _box(mask), area, outline.iscrowd)


def _check_memory(objects: int, size: tuple[int, int], file: Path) -> None:
    """Refuse an image whose masks need gigabytes, as do ids of noise."""
    limit = _IMAGES * pixel_limit()
    if objects * size[0] * size[1] > limit:
        raise DataError(
            f"{file}: {objects} objects in an image of {size[1]}x{size[0]}: more than {limit:.0g} pixels of masks;"
            f" shrink or split the image, or raise the limit with the environment variable {LIMIT}"
        )


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
        _check_memory(len(objects), size, file)
        return [Instance(mask, 0, _box(mask), float(mask.sum())) for mask in (ids == i for i in objects)]

    return pairs, read, problems


def _box(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
