"""The layouts of data sets for segmentation: one :class:`Layout` each, detected from the folders that exist."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, DataError, nearest
from ..images.folders import entries_below, has_images
from ..images.formats import is_image
from ..info import IGNORE, Labels
from . import cityscapes, coco, roboflow, voc
from .brush_masks import brush_mask_error, find_brush_mask, masks_name_no_image
from .labels import ADE20K, CAMVID
from .layout import (
    ALL,
    FILE,
    IMAGE_FOLDERS,
    MASK_FOLDERS,
    DatasetFile,
    UnknownLayoutError,
    describe,
    draw_splits,
    images_in,
    subfolders,
)
from .masks import plain_ids
from .outline_layouts import OUTLINE_LAYOUTS, OutlineLayout
from .outlines import Annotated
from .parts import Part, check_class_count, labels_and_reader, open_pairs

_UNSUPPORTED = (".gif", ".pgm", ".ppm", ".heic", ".jp2", ".exr")  # of images and masks that users have
_CAMVID_VOID = 11
_LABEL_STUDIO = "label_studio"
_INNER = 10  # folders that are searched for a layout


@dataclass(frozen=True)
class Layout:
    """One way to lay out a data set.

    Attributes:
        name: its name in ``dataset.yaml``.
        splits: gives the names of the splits below a folder; empty if the folder does not have this layout.
        open: finds the content of some of these splits.
        beats: names of more general layouts, which fit every folder that this one fits.
    """

    name: str
    splits: Callable[[Path, DatasetFile], tuple[str, ...]]
    open: Callable[[Path, Sequence[str], DatasetFile], Part]
    beats: tuple[str, ...] = ()


def layout_of(root: Path, described: DatasetFile) -> Layout | None:
    """The layout of a folder: the one that ``dataset.yaml`` names, else the one that fits; ``None`` if none fits.

    Raises:
        DataError: the named layout does not fit, or several fit.
    """
    if described.layout:
        layout = next((layout for layout in LAYOUTS if layout.name == described.layout), None)
        if layout and not layout.splits(root, described):
            raise DataError(f"{root}: its folders are not those of layout {layout.name!r}, which {FILE} names")
        return layout
    matches = [layout for layout in LAYOUTS if layout.splits(root, described)]
    matches = [layout for layout in matches if not any(layout.name in other.beats for other in matches)]
    if len(matches) > 1 and find_brush_mask(root):  # masks that only the JSON file beside them can match to images
        matches = [layout for layout in matches if layout.name == _LABEL_STUDIO] or matches
    if len(matches) > 1:
        names = " and ".join(layout.name for layout in matches)
        raise DataError(f"{root}: fits the layouts {names}; name one in {FILE}: 'layout: {matches[0].name}'")
    return matches[0] if matches else None


# ---- folders of images and folders of masks


def _camvid_splits(root: Path, described: DatasetFile) -> tuple[str, ...]:
    return tuple(f.name for f in subfolders(root) if (root / f"{f.name}annot").is_dir())


def _open_camvid(root: Path, splits: Sequence[str], described: DatasetFile) -> Part:
    folders = [(root / split, root / f"{split}annot") for split in splits]
    default = (CAMVID, plain_ids(len(CAMVID.names), (_CAMVID_VOID, IGNORE)))
    part = open_pairs(root, folders, described, default)
    own = voc.read_coloured(root, described)
    return dataclasses.replace(part, labels=own[0], read=own[1]) if own else part


def _folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """Folders of images and of masks by split.

    They are images/SPLIT and masks/SPLIT, SPLIT/images and SPLIT/masks, or SPLIT and SPLIT_masks.

    Raises:
        DataError: there are several for one split.
    """
    folders: dict[str, tuple[Path, Path]] = {}
    for split, candidates in _folder_candidates(root).items():
        pairs = [(images, masks) for images, masks in candidates if has_images(images) and has_images(masks)]
        if len(pairs) > 1:
            raise DataError(f"{root}: masks of {split!r} in {pairs[0][1]} and in {pairs[1][1]}: keep one of them")
        if pairs:
            folders[split] = pairs[0]
    return folders


def _folder_candidates(root: Path) -> dict[str, list[tuple[Path, Path]]]:
    """Folders where the images and the masks of each split may be; they need not exist."""
    candidates: dict[str, list[tuple[Path, Path]]] = {}
    mask_parents = [folder for folder in subfolders(root) if folder.name in MASK_FOLDERS]
    for images in (folder for folder in subfolders(root) if folder.name in IMAGE_FOLDERS):
        for split in subfolders(images):
            for masks in mask_parents:
                candidates.setdefault(split.name, []).append((split, masks / split.name))
    for split in subfolders(root):
        for images in (split / name for name in IMAGE_FOLDERS):
            for masks in (split / name for name in MASK_FOLDERS):
                candidates.setdefault(split.name, []).append((images, masks))
        for kind in MASK_FOLDERS:
            candidates.setdefault(split.name, []).append((split, root / f"{split.name}_{kind}"))
    return candidates


def _folder_splits(root: Path, described: DatasetFile) -> tuple[str, ...]:
    return tuple(_folders(root))


def _open_folders(root: Path, splits: Sequence[str], described: DatasetFile) -> Part:
    folders = _folders(root)
    return open_pairs(root, [folders[split] for split in splits], described)


def _flat_folders(root: Path) -> tuple[Path, Path] | None:
    images = [folder for folder in subfolders(root) if folder.name in IMAGE_FOLDERS and images_in(folder)]
    masks = [folder for folder in subfolders(root) if folder.name in MASK_FOLDERS and images_in(folder)]
    if len(images) > 1 or len(masks) > 1:
        names = ", ".join(folder.name for folder in images + masks)
        raise DataError(f"{root}: several folders of images or masks ({names}); keep one of images and one of masks")
    if not (images and masks) or masks_name_no_image(images_in(images[0]), images_in(masks[0])):
        return None
    return images[0], masks[0]


def _flat_splits(root: Path, described: DatasetFile) -> tuple[str, ...]:
    if _flat_folders(root) is None:
        return ()
    return ("train", "val", ALL) if described.val_share else (ALL,)


def _open_flat(root: Path, splits: Sequence[str], described: DatasetFile) -> Part:
    folders = _flat_folders(root)
    assert folders is not None, "_flat_splits found them"
    part = open_pairs(root, [folders], described)
    drawn = draw_splits((image.stem for image, _ in part.pairs), described)
    pairs = [pair for split in splits for pair in part.pairs if pair[0].stem in drawn[split]]
    return Part(tuple(pairs), part.labels, part.read, part.problems)


# ---- ADE20K


def _ade20k_folders(root: Path) -> tuple[str, ...]:
    return tuple(f.name for f in subfolders(root / "images") if (root / "annotations" / f.name).is_dir())


def _ade20k_splits(root: Path, described: DatasetFile) -> tuple[str, ...]:
    """Its folders have common names, so its files are checked for their prefix "ADE_"."""
    splits = _ade20k_folders(root)
    if described.layout == "ade20k" or any(_begins_with(root / "images" / split, "ADE_") for split in splits):
        return splits
    return ()


def _begins_with(folder: Path, prefix: str) -> bool:
    first = next((p for p in folder.iterdir() if is_image(p)), None)
    return first is not None and first.name.startswith(prefix)


def _open_ade20k(root: Path, splits: Sequence[str], described: DatasetFile) -> Part:
    """Id 0 is "other" and ignored; ids 1 to 150 become classes 0 to 149."""
    folders = [(root / "images" / split, root / "annotations" / split) for split in splits]
    class_of = {0: IGNORE} | {i + 1: i for i in range(len(ADE20K.names))}
    return open_pairs(root, folders, described, (ADE20K, class_of))


# ---- panoptic segments and outlines


def _open_panoptic(root: Path, splits: Sequence[str], described: DatasetFile) -> Annotated:
    return coco.read_annotations(root, splits, "panoptic", described)


def _annotated(name: str, layout: OutlineLayout, beats: tuple[str, ...]) -> Layout:
    """A layout whose classes are in the files of its labels."""

    def open_part(root: Path, splits: Sequence[str], described: DatasetFile) -> Part:
        if described.ids:
            raise DataError(f"{root / FILE}: 'ids' is for masks in files, not for {name}: leave it out")
        part = layout.open(root, splits, described)
        check_class_count(len(part.labels.names), root)
        return Part(part.pairs, part.labels, part.reader, part.problems, part.notes)

    return Layout(name, layout.splits, open_part, beats)


_PANOPTIC = OutlineLayout(lambda root, described: coco.splits(root, "panoptic", described), _open_panoptic)


# ---- Pascal VOC


def _open_voc(root: Path, splits: Sequence[str], described: DatasetFile) -> Part:
    """The classes are those of ``dataset.yaml``, else of the file of names; without colours, ids are not mapped."""
    pairs, problems = voc.find_pairs(root, splits, described)
    names, file = voc.read_labels(root, (image.stem for image, _ in pairs))
    if described.names or not names.names:
        labels, read = labels_and_reader(root, described, None, [mask for _, mask in pairs])
    elif file is not None and described.masks == "ids":
        unknown = described.unknown == "ignore"
        ignored = described.ignored_of(len(names.names))
        labels, read = names, voc.VocMasks(names, file, ignored, described.ignore_colours, unknown)
    else:
        ids = plain_ids(len(names.names), described.ignored_of(len(names.names)))
        labels, read = labels_and_reader(root, described, (names, ids), ())
    return Part(tuple(pairs), labels, read, tuple(problems), voc.note_unlisted(root, described))


# ---- Roboflow


def _open_roboflow(root: Path, splits: Sequence[str], described: DatasetFile) -> Part:
    """The classes are those of the table; with ``names`` in ``dataset.yaml``, ids are not mapped."""
    pairs, problems = roboflow.find_pairs(root, splits, described)
    classes = roboflow.read_classes(root)
    class_of = {identifier: place for place, identifier in enumerate(classes)}
    labels, read = labels_and_reader(root, described, (Labels(tuple(classes.values())), class_of), ())
    return Part(tuple(pairs), labels, read, tuple(problems))


_SIDE_FILES = ("polygons", "labelme")  # files beside images, which may be there in addition to masks

LAYOUTS = (
    Layout("camvid", _camvid_splits, _open_camvid),
    Layout("cityscapes", cityscapes.splits_of, cityscapes.open_splits),
    Layout("ade20k", _ade20k_splits, _open_ade20k, beats=("folders",)),
    _annotated("coco_panoptic", _PANOPTIC, beats=("folders", "flat", *OUTLINE_LAYOUTS)),
    _annotated("coco_instances", OUTLINE_LAYOUTS["coco_instances"], beats=_SIDE_FILES),
    _annotated(_LABEL_STUDIO, OUTLINE_LAYOUTS[_LABEL_STUDIO], beats=_SIDE_FILES),
    _annotated("supervisely", OUTLINE_LAYOUTS["supervisely"], beats=_SIDE_FILES),
    Layout("voc", voc.splits_of, _open_voc, beats=_SIDE_FILES),
    Layout("roboflow", roboflow.splits_of, _open_roboflow, beats=_SIDE_FILES),
    Layout("folders", _folder_splits, _open_folders, beats=_SIDE_FILES),
    Layout("flat", _flat_splits, _open_flat, beats=_SIDE_FILES),
    _annotated("polygons", OUTLINE_LAYOUTS["polygons"], beats=()),
    _annotated("labelme", OUTLINE_LAYOUTS["labelme"], beats=()),
)


def unknown_layout(root: Path, described: DatasetFile, others: Sequence[str] = ()) -> DataError:
    """The error for a folder that no layout fits, or whose ``dataset.yaml`` names an unknown layout.

    Args:
        root: folder of the data set.
        described: its ``dataset.yaml``.
        others: names of further layouts that the caller accepts.
    """
    names = [*(layout.name for layout in LAYOUTS), *others]
    if described.layout:
        return DataError(f"{root / FILE}: unknown layout {described.layout!r}{nearest(described.layout, names)}")
    if brush := find_brush_mask(root):
        return brush_mask_error(brush)
    files = (entry.path.relative_to(root) for entry in itertools.islice(entries_below(root), 10_000))
    unsupported = next((path for path in files if path.suffix.lower() in _UNSUPPORTED), None)
    hint = f"; {unsupported} has an unsupported format: save images and masks as PNG" if unsupported else ""
    if inner := inner_layout(root):
        hint += f"; {inner.name} inside it has a layout: give {inner}"
    return UnknownLayoutError(
        f"{root}: no layout fits ({', '.join(names)}); docs/data.md shows a tree of each. The simplest is"
        f" images/train, masks/train, images/val, masks/val{hint}"
    )


def inner_layout(root: Path) -> Path | None:
    """A folder in ``root`` that has a layout for segmentation, as unpacked archives often do."""
    for folder in subfolders(root)[:_INNER]:
        try:
            if layout_of(folder, describe(folder)):
                return folder
        except (ConfigError, DataError):
            continue
    return None


def mask_folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """Folders of images and of masks by split, under "all" if there are no splits; empty if there are none.

    Raises:
        DataError: there are several for one split.
    """
    if by_split := _folders(root):
        return by_split
    flat = _flat_folders(root)
    return {ALL: flat} if flat else {}
