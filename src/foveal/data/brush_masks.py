"""Label Studio's exports "Brush labels to PNG" and "to NumPy", which cannot be read: a name has no image in it.

The names are ``task-3-annotation-5-by-1-brush-cat-0.png``: ids of task, annotation and annotator, name of the control,
label, and a number. Only the export "JSON" says which image a task has (:mod:`foveal.data.label_studio`). Source:
https://labelstud.io/guide/export#Brush-labels-to-NumPy-amp-PNG
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError
from ..images.folders import entries_below
from .label_files import shown

_NAME = re.compile(r"task-\d+-annotation-\d+-by-.+\.(png|npy)", re.IGNORECASE | re.DOTALL)
_MOST = 10_000  # files whose names are compared


def is_brush_mask(file: Path) -> bool:
    """Whether a file has the name of such a mask."""
    return _NAME.fullmatch(file.name) is not None


def find_brush_mask(root: Path) -> Path | None:
    """The first file below a folder that has the name of such a mask."""
    files = (entry.path for entry in itertools.islice(entries_below(root), _MOST))
    return next(filter(is_brush_mask, files), None)


def masks_name_no_image(images: Sequence[Path], masks: Sequence[Path]) -> bool:
    """Whether all masks have such names, and no image has one of them, as after renaming."""
    return bool(masks) and all(map(is_brush_mask, masks)) and {p.stem for p in images}.isdisjoint(p.stem for p in masks)


def brush_mask_error(file: Path) -> DataError:
    """The error for a data set with such a mask."""
    kind = "NumPy" if file.suffix.lower() == ".npy" else "PNG"
    return DataError(
        f"{file.parent}: {shown(file.name)} is of Label Studio's export 'Brush labels to {kind}', whose names do not "
        "say which image a mask belongs to; choose the export 'JSON' and put its file beside the images"
    )
