"""Cityscapes: masks of training ids, masks of label ids, or polygons, which are drawn as its own scripts draw them.

::

    ROOT/leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png
    ROOT/gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png      or ..._labelTrainIds.png, ..._polygons.json

With ``ROOT/label_colors.txt``, as CVAT exports it, the label ids are the lines of that file.

Source: the format and the labels of https://github.com/mcordts/cityscapesScripts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..errors import DataError, InputError
from ..images.bands import read_size
from ..info import IGNORE, Labels
from . import voc
from .label_files import read_json, shown
from .labels import CITYSCAPES, CITYSCAPES_TRAIN_IDS
from .layout import FILE, DatasetFile, Problem, by_stem, images_in, match_files, subfolders
from .masks import MaskReader, plain_ids
from .outlines import DAMAGE, check_lengths, check_object_count, damaged, polygons_of
from .parts import Part, labels_and_reader

_IMAGES, _LABELS = "leftImg8bit", "gtFine"
_GROUP = "group"  # ending of the labels of several objects in one polygon
_NOT_DRAWN = "license plate"  # has no label id

#: Labels of Cityscapes without a class in training.
_IGNORED = (
    "unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground", "parking",
    "rail track", "guard rail", "bridge", "tunnel", "polegroup", "caravan", "trailer",
)  # fmt: skip


class _Kind(NamedTuple):
    """One form of the annotations.

    Attributes:
        ending: of their stems.
        suffixes: of their files.
    """

    ending: str
    suffixes: tuple[str, ...]


_TRAIN_IDS = _Kind(f"_{_LABELS}_labelTrainIds", (".png",))
_LABEL_IDS = _Kind(f"_{_LABELS}_labelIds", (".png",))
_POLYGONS = _Kind(f"_{_LABELS}_polygons", (".json",))
_KINDS = (_TRAIN_IDS, _LABEL_IDS, _POLYGONS)  # the first one that a split has is used


def splits_of(root: Path, described: DatasetFile) -> tuple[str, ...]:
    """Names of the splits; empty if the data set does not have this layout."""
    return tuple(f.name for f in subfolders(root / _IMAGES) if (root / _LABELS / f.name).is_dir())


def open_splits(root: Path, splits: Sequence[str], described: DatasetFile) -> Part:
    """Find the images of some splits, each with its mask or polygons.

    Raises:
        DataError: the splits have annotations of different kinds.
    """
    excluded = described.excluded(root)
    pairs: list[tuple[Path, Path]] = []
    problems: list[Problem] = []
    kinds: set[_Kind] = set()
    for split in splits:
        kind, labels = _annotations(root / _LABELS / split)
        kinds.add(kind)
        images = images_in(root / _IMAGES / split, deep=True)
        found, unmatched = match_files(
            by_stem(images, root / _IMAGES / split, f"_{_IMAGES}"),
            [by_stem(labels, root / _LABELS / split, kind.ending)],
            ("image", "polygons" if kind == _POLYGONS else "mask"),
            excluded,
        )
        pairs += found
        problems += unmatched
    if len(kinds) > 1:
        names = ", others ".join(kind.ending.rpartition("_")[2] for kind in _KINDS if kind in kinds)
        raise DataError(f"{root}: some of {' + '.join(splits)} have {names}: use one kind")
    labels, read = _reader(root, described, kinds.pop() if kinds else _LABEL_IDS)
    return Part(tuple(pairs), labels, read, tuple(problems))


def _annotations(folder: Path) -> tuple[_Kind, list[Path]]:
    """The annotations of a split, and their kind."""
    masks = images_in(folder, deep=True)
    for kind in _KINDS:
        files = sorted(folder.rglob("*.json")) if kind == _POLYGONS else masks
        if any(file.stem.endswith(kind.ending) for file in files):
            return kind, files
    return _LABEL_IDS, masks


def _reader(root: Path, described: DatasetFile, kind: _Kind) -> tuple[Labels, MaskReader]:
    if kind == _POLYGONS:
        if described.ids:
            raise DataError(f"{root / FILE}: 'ids' is for masks, not for polygons: leave it out")
        names = described.names or CITYSCAPES.names
        if len(names) > IGNORE:
            raise DataError(f"{root / FILE}: {len(names)} names; at most {IGNORE} are possible for polygons")
        palette = described.palette or (() if described.names else CITYSCAPES.palette)
        class_of = dict.fromkeys(_IGNORED, IGNORE) | {name: place for place, name in enumerate(names)}
        return Labels(names, palette), PolygonMasks(class_of, described.unknown == "ignore")
    if own := voc.read_coloured(root, described):
        return own
    class_of = {i: CITYSCAPES_TRAIN_IDS.get(i, IGNORE) for i in range(-1, 34)} | {IGNORE: IGNORE}
    train_ids = plain_ids(len(CITYSCAPES.names), (-1, IGNORE))
    return labels_and_reader(root, described, (CITYSCAPES, train_ids if kind == _TRAIN_IDS else class_of), ())


@dataclass(frozen=True)
class PolygonMasks:
    """Reads masks that are drawn from polygons, ``(image path, JSON path) -> (H, W) uint8``.

    Later polygons are in front of earlier ones. What no polygon covers is ignored.

    Attributes:
        class_of: class by label; 255: ignored.
        ignore_unknown: whether polygons of other labels are ignored; otherwise the file is refused.
    """

    class_of: Mapping[str, int]
    ignore_unknown: bool = False

    def __call__(self, image: Path, mask: Path, /) -> NDArray[np.uint8]:
        """Draw the polygons of one image.

        Raises:
            DataError: the file is damaged, has an unknown label or another size, or the image cannot be read.
        """
        try:
            size = read_size(image)
        except InputError as error:
            raise DataError(str(error)) from error
        data = read_json(mask)
        declared = data.get("imgHeight"), data.get("imgWidth")
        if None not in declared and declared != size:
            height, width = (shown(side, 20) for side in declared)
            raise DataError(f"{mask}: mask of {width}x{height} (W x H) for {image.name} of {size[1]}x{size[0]}")
        canvas = Image.new("L", (size[1], size[0]), IGNORE)
        pen, length, name = ImageDraw.Draw(canvas), 0.0, "its list"
        try:
            objects = data["objects"]
            check_object_count(len(objects))
            for number, item in enumerate(objects, start=1):
                name = f"object {number}"
                value = self._class(item)
                if value is None:
                    continue
                (polygon,), _ = polygons_of(item["polygon"])
                length = check_lengths([polygon], length)
                pen.polygon(polygon, fill=value)
        except DAMAGE as error:
            raise damaged(mask, image, error, name) from error
        return np.array(canvas)

    def _class(self, item: Mapping[str, Any]) -> int | None:
        """The class of an object; ``None`` if it is not drawn."""
        label = item["label"]
        if not isinstance(label, str):
            raise ValueError(f"label {shown(label)} is not a text")
        if label == _NOT_DRAWN or item.get("deleted"):
            return None
        known = label if label in self.class_of else label.removesuffix(_GROUP)
        if known not in self.class_of and not self.ignore_unknown:
            raise ValueError(
                f"label {shown(label)} is none of the classes; list them as 'names' in {FILE}, or write 'unknown:"
                " ignore'"
            )
        return self.class_of.get(known, IGNORE)
