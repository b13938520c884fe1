"""Roboflow's "semantic segmentation masks": masks beside the images, and a table of the classes in each folder.

::

    ROOT/train/a.jpg  ROOT/train/a_mask.png   the mask has the ids of the table
    ROOT/train/_classes.csv                   lines "Pixel Value, Class" and "0, background"; also ROOT/_classes.csv

Roboflow's other exports are COCO's JSON (:mod:`foveal.data.coco`) and YOLO's text files (:mod:`foveal.data.yolo`).
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import DataError
from .label_files import read_text, shown
from .labels import class_difference
from .layout import ALL, SPLIT_NAMES, DatasetFile, Problem, by_stem, draw_splits, images_in, match_files, subfolders

_TABLE = "_classes.csv"
_ENDING = "_mask"
_IDS = 1 << 16


def folders_of(root: Path) -> dict[str, Path]:
    """Folders with a table of classes, by split; the split is "all" if it is the data set itself."""
    folders = {folder.name: folder for folder in subfolders(root) if (folder / _TABLE).is_file()}
    return folders or ({ALL: root} if (root / _TABLE).is_file() else {})


def splits_of(root: Path, described: DatasetFile) -> tuple[str, ...]:
    """Names of the splits; empty if the data set does not have this layout."""
    folders = {split: folder for split, folder in folders_of(root).items() if _has_masks(folder)}
    if described.val_share and len(folders) == 1 and not folders.keys() & set(SPLIT_NAMES):
        return ("train", "val", ALL)
    return tuple(folders)


def _has_masks(folder: Path) -> bool:
    """Whether there are masks; in Roboflow's export for classification with several labels there are none."""
    return any(path.stem.endswith(_ENDING) for path in images_in(folder))


def find_pairs(
    root: Path, splits: Sequence[str], described: DatasetFile
) -> tuple[list[tuple[Path, Path]], list[Problem]]:
    """The images and masks of some splits, and a problem for each file without a partner."""
    folders, excluded = folders_of(root), described.excluded(root)
    pairs: list[tuple[Path, Path]] = []
    problems: list[Problem] = []
    for split in splits:
        drawn = split not in folders or (split == ALL and len(folders) == 1)
        folder = next(iter(folders.values())) if drawn else folders[split]
        files = images_in(folder)
        masks = [path for path in files if path.suffix.lower() == ".png" and path.stem.endswith(_ENDING)]
        images = by_stem(sorted(set(files) - set(masks)), folder)
        found, unmatched = match_files(images, [by_stem(masks, folder, _ENDING)], ("image", "mask"), excluded)
        if drawn:
            names = draw_splits((image.stem for image, _ in found), described)[split]
            found = [pair for pair in found if pair[0].stem in names]
        pairs += found
        problems += unmatched
    return pairs, problems


def read_classes(root: Path) -> dict[int, str]:
    """Class names by id, from the tables of all folders.

    Raises:
        DataError: a table cannot be read, or two of them differ.
    """
    tables = {folder / _TABLE: _read_table(folder / _TABLE) for folder in folders_of(root).values()}
    (first, classes), *others = tables.items()
    for file, table in others:
        if table != classes:
            difference = class_difference(tuple(classes.values()), tuple(table.values())) or "other ids"
            raise DataError(f"{file}: other classes than in {first}: {difference}")
    return dict(classes)


def _read_table(file: Path) -> Mapping[int, str]:
    classes: dict[int, str] = {}
    try:
        rows = list(csv.reader(read_text(file).splitlines()))
    except csv.Error as error:
        raise DataError(f"{file}: {error}") from None
    for number, row in enumerate(rows, start=1):
        if not row or (number == 1 and not row[0].strip().isdecimal()):  # the heading
            continue
        identifier, name = row[0].strip(), ",".join(row[1:]).strip()
        if not (identifier.isdecimal() and len(identifier) < 6 and int(identifier) < _IDS and name):
            raise DataError(f"{file}: line {number}: {shown(','.join(row), 40)} is not 'id, class'")
        if int(identifier) in classes or name in classes.values():
            raise DataError(f"{file}: line {number}: the id or the class {shown(name, 40)} is there twice")
        classes[int(identifier)] = name
    if not classes:
        raise DataError(f"{file}: no classes in it; write a line 'id, class' for each")
    return dict(sorted(classes.items()))
