"""The layouts of objects as outlines, which give both class masks and one mask per object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from . import coco, label_studio, labelme, supervisely, yolo
from .layout import DatasetFile
from .outlines import Annotated


class OutlineLayout(NamedTuple):
    """One way to store outlines.

    Attributes:
        splits: gives the names of the splits below a folder; empty if the folder does not have this layout.
        open: finds the content of some of these splits.
    """

    splits: Callable[[Path, DatasetFile], tuple[str, ...]]
    open: Callable[[Path, Sequence[str], DatasetFile], Annotated]


def _coco_splits(root: Path, described: DatasetFile) -> tuple[str, ...]:
    return coco.splits(root, "instances", described)


def _open_coco(root: Path, splits: Sequence[str], described: DatasetFile) -> Annotated:
    return coco.read_annotations(root, splits, "instances", described)


#: By name, the more particular first.
OUTLINE_LAYOUTS = {
    "coco_instances": OutlineLayout(_coco_splits, _open_coco),
    "label_studio": OutlineLayout(label_studio.splits, label_studio.read_annotations),
    "supervisely": OutlineLayout(supervisely.splits, supervisely.read_annotations),
    "polygons": OutlineLayout(yolo.splits, yolo.read_annotations),
    "labelme": OutlineLayout(labelme.splits, labelme.read_annotations),
}
