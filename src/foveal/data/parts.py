"""The content of a layout for segmentation, and the steps that several layouts share: pairs, classes, readers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import DataError, InputError
from ..images.reading import read_mask
from ..info import IGNORE, MAX_CLASSES, Labels, ignore_id
from .brush_masks import brush_mask_error, masks_name_no_image
from .layout import FILE, DatasetFile, Problem, by_stem, images_in, match_files
from .masks import ColourMasks, IdMasks, MaskReader, described_ids

_LOSSLESS = (".png", ".bmp", ".tif", ".tiff", ".npy")
_LOSSY = "JPEG and WebP masks do not keep the ids that were saved; save them as PNG"
_MASK_ENDINGS = ("", "_mask", "_masks", "_label", "_labels", "_gt", "_seg", "_L")


@dataclass(frozen=True)
class Part:
    """The content of some splits.

    Attributes:
        pairs: (image, file with its labels), sorted within a split.
        labels: names and palette of the classes.
        read: reads the mask of a pair.
        problems: files without a partner, stems that occur twice, masks in lossy formats.
        notes: what is allowed but may be a mistake, and what is left out.
    """

    pairs: tuple[tuple[Path, Path], ...]
    labels: Labels
    read: MaskReader
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()


Default = tuple[Labels, Mapping[int, int]]  # classes of a layout, and the class of each id


def check_class_count(classes: int, source: Path) -> None:
    """Raise DataError if there are too many classes."""
    if classes > MAX_CLASSES:
        raise DataError(f"{source}: {classes} classes; at most {MAX_CLASSES} are possible")


def open_pairs(
    root: Path, folders: Sequence[tuple[Path, Path]], described: DatasetFile, default: Default | None = None
) -> Part:
    """Pair the files of (images, masks) folders; ``default`` applies unless ``dataset.yaml`` has names."""
    excluded = described.excluded(root)
    pairs: list[tuple[Path, Path]] = []
    problems: list[Problem] = []
    for images, masks in folders:
        folder_pairs, folder_problems = mask_pairs(images, masks, excluded)
        pairs += folder_pairs
        problems += folder_problems
    labels, read = labels_and_reader(root, described, default, [mask for _, mask in pairs])
    return Part(tuple(pairs), labels, read, tuple(problems))


def mask_pairs(images: Path, masks: Path, excluded: frozenset[Path]) -> tuple[list[tuple[Path, Path]], list[Problem]]:
    """Pair images and masks by stem; every file without a partner, and every lossy mask, is a problem.

    Raises:
        DataError: the masks are of an export of Label Studio that does not name their images.
    """
    files = images_in(masks, deep=True)
    lossy = [Problem(p, _LOSSY) for p in files if p.suffix.lower() not in _LOSSLESS and p not in excluded]
    files = [p for p in files if p.suffix.lower() in _LOSSLESS]
    pictures = images_in(images, deep=True)
    if masks_name_no_image(pictures, files):
        raise brush_mask_error(files[0])
    pairs, unmatched = match_files(
        by_stem(pictures, images),
        [by_stem(files, masks, ending) for ending in _MASK_ENDINGS],
        ("image", "mask"),
        excluded,
    )
    return pairs, [*lossy, *unmatched]


def labels_and_reader(
    root: Path, described: DatasetFile, default: Default | None, masks: Sequence[Path]
) -> tuple[Labels, MaskReader]:
    """The classes, and the reader that maps the ids or colours of masks to them; ``masks`` are for messages."""
    ignore_unknown = described.unknown == "ignore"
    if described.masks == "colours":
        labels = Labels(described.names, described.palette) if described.names or default is None else default[0]
        if not labels.palette:
            raise DataError(f"{root / FILE}: 'masks: colours' needs 'palette' and 'names', one of each per class")
        return labels, ColourMasks(labels.palette, described.ignore_colours, ignore_unknown)
    check_class_count(len(described.names), root / FILE)
    if described.names:
        labels, class_of = Labels(described.names, described.palette), described_ids(described)
    elif default is not None:
        labels = Labels(default[0].names, described.palette or default[0].palette)
        count = len(labels.names)
        ignored = dict.fromkeys(described.ignored_of(count), ignore_id(count))
        # By default an id that has a class is no ignored one; what the user writes counts in any case.
        class_of = {**ignored, **default[1]} if described.ignore == (IGNORE,) else {**default[1], **ignored}
    else:
        raise DataError(
            f"{root}: the masks have ids without class names; write {FILE} with 'names: [...]', one per id, or with"
            f" 'layout: instance_ids' if each id is one object{_ids_in(masks)}"
        )
    return labels, IdMasks(class_of, len(labels.names), ignore_unknown, labels.palette)


def _ids_in(masks: Sequence[Path], limit: int = 20) -> str:
    """The ids that occur in the first masks, for messages."""
    ids: set[int] = set()
    for mask in _read_masks(masks[:limit]):
        ids |= {int(i) for i in np.unique(mask)}
    if not ids:
        return ""
    shown = ", ".join(map(str, sorted(ids)[:20])) + (", ..." if len(ids) > 20 else "")
    return f" (ids in the first {min(limit, len(masks))} masks: {shown})"


def _read_masks(masks: Sequence[Path]) -> Iterator[np.ndarray]:
    """The masks that can be read."""
    for mask in masks:
        try:
            yield read_mask(mask)
        except InputError:
            continue
