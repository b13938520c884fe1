"""How data sets for segmentation are laid out: one :class:`Layout` each, told apart by the folders that are there."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import DataError, InputError, nearest
from ..images.formats import is_image
from ..images.reading import read_mask
from ..info import IGNORE, Labels
from . import coco
from .labels import ADE20K, CAMVID, CITYSCAPES, CITYSCAPES_TRAIN_IDS
from .layout import (
    ALL,
    FILE,
    IMAGE_FOLDERS,
    MASK_FOLDERS,
    DatasetFile,
    Problem,
    by_stem,
    drawn_splits,
    has_images,
    images_in,
    matched,
    subfolders,
)
from .masks import ColourMasks, IdMasks, MaskReader, plain_ids

_FOREIGN = (".gif", ".pgm", ".ppm", ".npy", ".heic", ".jp2", ".exr")  # images and masks that people do have
_LOSSLESS = (".png", ".bmp", ".tif", ".tiff")
_LOSSY = "masks as JPEG or WebP do not keep the ids that were saved; save them as PNG"
_MASK_ENDINGS = ("", "_mask", "_masks", "_label", "_labels", "_gt", "_seg", "_L")
_CAMVID_VOID = 11


@dataclass(frozen=True)
class Part:
    """What a layout finds in some splits.

    Attributes:
        pairs: (image, file with its labels), sorted within a split.
        labels: names and palette.
        read: how labels are read.
        problems: files without a partner, stems that occur twice.
    """

    pairs: tuple[tuple[Path, Path], ...]
    labels: Labels
    read: MaskReader
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Layout:
    """One way to lay out a data set.

    Attributes:
        name: as ``dataset.yaml`` calls it.
        splits: names of the splits below a folder; none: the folder is not laid out so.
        open: finds what some of these splits hold.
        beats: layouts that the folder also fits whenever it fits this one.
    """

    name: str
    splits: Callable[[Path, DatasetFile], tuple[str, ...]]
    open: Callable[[Path, Sequence[str], DatasetFile], Part]
    beats: tuple[str, ...] = ()


def layout_of(root: Path, described: DatasetFile) -> Layout | None:
    """The layout of a folder: the one that ``dataset.yaml`` names, else the one it fits; ``None`` where it fits none.

    Raises:
        DataError: the named layout does not fit, or several do.
    """
    if described.layout:
        layout = next((layout for layout in LAYOUTS if layout.name == described.layout), None)
        if layout and not layout.splits(root, described):
            raise DataError(f"{root}: is not laid out as {layout.name!r}, which {FILE} names")
        return layout
    fitting = [layout for layout in LAYOUTS if layout.splits(root, described)]
    fitting = [layout for layout in fitting if not any(layout.name in other.beats for other in fitting)]
    if len(fitting) > 1:
        names = " and ".join(layout.name for layout in fitting)
        raise DataError(f"{root}: fits the layouts {names}: name one in {FILE}, as 'layout: {fitting[0].name}'")
    return fitting[0] if fitting else None


# ---- folders of images beside folders of masks


def _camvid_splits(root: Path, described: DatasetFile) -> tuple[str, ...]:
    return tuple(f.name for f in subfolders(root) if (root / f"{f.name}annot").is_dir())


def _open_camvid(root: Path, splits: Sequence[str], described: DatasetFile) -> Part:
    where = [(split, root / split, root / f"{split}annot") for split in splits]
    own = (CAMVID, plain_ids(len(CAMVID.names), (_CAMVID_VOID, IGNORE)))
    return _part(root, where, described, own)


def _folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """Folders of images and of masks by split, in any of the usual orders of "split" and "kind"."""
    found: dict[str, list[tuple[Path, Path]]] = {}
    masked = [folder for folder in subfolders(root) if folder.name in MASK_FOLDERS]
    for images in (folder for folder in subfolders(root) if folder.name in IMAGE_FOLDERS):
        for split in subfolders(images):
            for masks in masked:
                found.setdefault(split.name, []).append((split, masks / split.name))
    for split in subfolders(root):
        for images in (split / name for name in IMAGE_FOLDERS):
            for masks in (split / name for name in MASK_FOLDERS):
                found.setdefault(split.name, []).append((images, masks))
        for kind in MASK_FOLDERS:
            found.setdefault(split.name, []).append((split, root / f"{split.name}_{kind}"))
    whole: dict[str, tuple[Path, Path]] = {}
    for split, candidates in found.items():
        good = [(images, masks) for images, masks in candidates if has_images(images) and has_images(masks)]
        if len(good) > 1:
            raise DataError(f"{root}: masks of {split!r} in {good[0][1]} and in {good[1][1]}: keep one of them")
        if good:
            whole[split] = good[0]
    return whole


def _folder_splits(root: Path, described: DatasetFile) -> tuple[str, ...]:
    return tuple(_folders(root))


def _open_folders(root: Path, splits: Sequence[str], described: DatasetFile) -> Part:
    folders = _folders(root)
    return _part(root, [(split, *folders[split]) for split in splits], described)


def _flat_folders(root: Path) -> tuple[Path, Path] | None:
    images = [folder for folder in subfolders(root) if folder.name in IMAGE_FOLDERS and images_in(folder)]
    masks = [folder for folder in subfolders(root) if folder.name in MASK_FOLDERS and images_in(folder)]
    if len(images) > 1 or len(masks) > 1:
        names = ", ".join(folder.name for folder in images + masks)
        raise DataError(f"{root}: which of {names} belong together? Keep one folder of images and one of masks")
    return (images[0], masks[0]) if images and masks else None


def _flat_splits(root: Path, described: DatasetFile) -> tuple[str, ...]:
    if _flat_folders(root) is None:
        return ()
    return ("train", "val", ALL) if described.val_share else (ALL,)


def _open_flat(root: Path, splits: Sequence[str], described: DatasetFile) -> Part:
    folders = _flat_folders(root)
    assert folders is not None, "only asked for splits that are there"
    part = _part(root, [(ALL, *folders)], described)
    drawn = drawn_splits((image.stem for image, _ in part.pairs), described)
    wanted = [pair for split in splits for pair in part.pairs if pair[0].stem in drawn[split]]
    return Part(tuple(wanted), part.labels, part.read, part.problems)


# ---- Cityscapes and ADE20K


def _cityscapes_splits(root: Path, described: DatasetFile) -> tuple[str, ...]:
    return tuple(f.name for f in subfolders(root / "leftImg8bit") if (root / "gtFine" / f.name).is_dir())


def _open_cityscapes(root: Path, splits: Sequence[str], described: DatasetFile) -> Part:
    """Masks of training ids where there are some, else of label ids, which are mapped."""
    excluded = described.excluded(root)
    pairs: list[tuple[Path, Path]] = []
    problems: list[Problem] = []
    endings = set()
    for split in splits:
        masks = images_in(root / "gtFine" / split, deep=True)
        ending = "_gtFine_labelTrainIds"
        if not any(mask.stem.endswith(ending) for mask in masks):
            ending = "_gtFine_labelIds"
        endings.add(ending)
        images = images_in(root / "leftImg8bit" / split, deep=True)
        found, unmatched = matched(
            by_stem(images, root / "leftImg8bit" / split, "_leftImg8bit"),
            [by_stem(masks, root / "gtFine" / split, ending)],
            ("image", "mask"),
            excluded,
        )
        pairs += found
        problems += unmatched
    if len(endings) > 1:
        raise DataError(f"{root}: {' + '.join(splits)} have labelIds here and labelTrainIds there: use one kind")
    train_ids = endings == {"_gtFine_labelTrainIds"}
    class_of = {i: CITYSCAPES_TRAIN_IDS.get(i, IGNORE) for i in range(-1, 34)} | {IGNORE: IGNORE}
    own = (CITYSCAPES, plain_ids(len(CITYSCAPES.names), (-1, IGNORE)) if train_ids else class_of)
    labels, read = _meaning(root, described, own, ())
    return Part(tuple(pairs), labels, read, tuple(problems))


def _ade20k_folders(root: Path) -> tuple[str, ...]:
    return tuple(f.name for f in subfolders(root / "images") if (root / "annotations" / f.name).is_dir())


def _ade20k_splits(root: Path, described: DatasetFile) -> tuple[str, ...]:
    """Its folders are called as anybody's; the names of its files are its own."""
    splits = _ade20k_folders(root)
    if described.layout == "ade20k" or any(_begins_with(root / "images" / split, "ADE_") for split in splits):
        return splits
    return ()


def _begins_with(folder: Path, prefix: str) -> bool:
    first = next((p for p in folder.iterdir() if is_image(p)), None)
    return first is not None and first.name.startswith(prefix)


def _open_ade20k(root: Path, splits: Sequence[str], described: DatasetFile) -> Part:
    """0 is "other" and left out; ids 1 to 150 become classes 0 to 149."""
    where = [(split, root / "images" / split, root / "annotations" / split) for split in splits]
    count = len(ADE20K.names)
    return _part(root, where, described, (ADE20K, {0: IGNORE} | {i + 1: i for i in range(count)}))


# ---- COCO


def _open_coco(root: Path, splits: Sequence[str], described: DatasetFile, kind: coco.Kind) -> Part:
    found = coco.read_annotations(root, splits, kind, described.excluded(root))
    if (count := len(found.labels.names)) > IGNORE:
        raise DataError(f"{root}: {count} classes; at most {IGNORE} fit beside the ignored id {IGNORE}")
    if described.names not in ((), found.labels.names):
        raise DataError(f"{root / FILE}: 'names' are not the categories of the JSON files; leave them out")
    return Part(found.pairs, Labels(found.labels.names, described.palette), found.reader, found.problems)


LAYOUTS = (
    Layout("camvid", _camvid_splits, _open_camvid),
    Layout("cityscapes", _cityscapes_splits, _open_cityscapes),
    Layout("ade20k", _ade20k_splits, _open_ade20k, beats=("folders",)),
    Layout(
        "coco_panoptic",
        lambda root, _: coco.splits(root, "panoptic"),
        lambda root, splits, described: _open_coco(root, splits, described, "panoptic"),
        beats=("coco_instances", "folders"),
    ),
    Layout(
        "coco_instances",
        lambda root, _: coco.splits(root, "instances"),
        lambda root, splits, described: _open_coco(root, splits, described, "instances"),
    ),
    Layout("folders", _folder_splits, _open_folders),
    Layout("flat", _flat_splits, _open_flat),
)


def unknown_layout(root: Path, described: DatasetFile, others: Sequence[str] = ()) -> DataError:
    """What to say where no layout fits."""
    names = [*(layout.name for layout in LAYOUTS), *others]
    if described.layout:
        return DataError(f"{root / FILE}: unknown layout {described.layout!r}{nearest(described.layout, names)}")
    some = itertools.islice(root.rglob("*"), 10_000)
    foreign = next((path.relative_to(root) for path in some if path.suffix.lower() in _FOREIGN), None)
    unread = f"; if {foreign} is one of them, its format is not read: save it as PNG" if foreign else ""
    return DataError(
        f"{root}: no layout fits ({', '.join(names)}); docs/data.md shows a tree of each, the simplest being"
        f" images/train, masks/train, images/val, masks/val{unread}"
    )


# ---- what they share


def _part(
    root: Path,
    where: Sequence[tuple[str, Path, Path]],
    described: DatasetFile,
    own: tuple[Labels, Mapping[int, int]] | None = None,
) -> Part:
    """Pairs of (split, images, masks) folders, with ``own`` labels and ids unless ``dataset.yaml`` has names."""
    excluded = described.excluded(root)
    pairs: list[tuple[Path, Path]] = []
    problems: list[Problem] = []
    for _, images, masks in where:
        found, unfit = mask_pairs(images, masks, excluded)
        pairs += found
        problems += unfit
    labels, read = _meaning(root, described, own, [mask for _, mask in pairs])
    return Part(tuple(pairs), labels, read, tuple(problems))


def mask_folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """Folders of images and of masks by split, "all" where there are no splits; none: it is not laid out so.

    Raises:
        DataError: several folders could be meant.
    """
    if by_split := _folders(root):
        return by_split
    flat = _flat_folders(root)
    return {ALL: flat} if flat else {}


def mask_pairs(images: Path, masks: Path, excluded: frozenset[Path]) -> tuple[list[tuple[Path, Path]], list[Problem]]:
    """Images with their masks by stem, and every file that has no partner or cannot hold ids."""
    files = images_in(masks, deep=True)
    lossy = [Problem(p, _LOSSY) for p in files if p.suffix.lower() not in _LOSSLESS and p not in excluded]
    files = [p for p in files if p.suffix.lower() in _LOSSLESS]
    found, unmatched = matched(
        by_stem(images_in(images, deep=True), images),
        [by_stem(files, masks, ending) for ending in _MASK_ENDINGS],
        ("image", "mask"),
        excluded,
    )
    return found, [*lossy, *unmatched]


def _meaning(
    root: Path, described: DatasetFile, own: tuple[Labels, Mapping[int, int]] | None, masks: Sequence[Path]
) -> tuple[Labels, MaskReader]:
    """Names, and what the ids of the masks mean."""
    lenient = described.unknown == "ignore"
    if described.masks == "colours":
        labels = Labels(described.names, described.palette) if described.names or own is None else own[0]
        if not labels.palette:
            raise DataError(f"{root / FILE}: 'masks: colours' needs 'palette' and 'names', one of each per class")
        return labels, ColourMasks(labels.palette, described.ignore_colours, lenient)
    if described.names:
        if len(described.names) > IGNORE:
            raise DataError(
                f"{root / FILE}: {len(described.names)} classes; at most {IGNORE} fit beside the ignored id {IGNORE}"
            )
        labels, class_of = Labels(described.names, described.palette), plain_ids(len(described.names), described.ignore)
    elif own is not None:
        labels = Labels(own[0].names, described.palette or own[0].palette)
        class_of = {**own[1], **dict.fromkeys(described.ignore, IGNORE)}
    else:
        raise DataError(
            f"{root}: what do the ids of the masks mean? Write {FILE} with 'names: [...]', one per id, or with"
            f" 'layout: instance_ids' if each is one object{_ids_in(masks)}"
        )
    return labels, IdMasks(class_of, len(labels.names), lenient, labels.palette)


def _ids_in(masks: Sequence[Path], limit: int = 20) -> str:
    """The ids that occur in the first masks, to help with writing names."""
    ids: set[int] = set()
    for mask in _readable(masks[:limit]):
        ids |= {int(i) for i in np.unique(mask)}
    if not ids:
        return ""
    shown = ", ".join(map(str, sorted(ids)[:20])) + (", ..." if len(ids) > 20 else "")
    return f" (ids in the first {min(limit, len(masks))} masks: {shown})"


def _readable(masks: Sequence[Path]) -> Iterator[np.ndarray]:
    for mask in masks:
        try:
            yield read_mask(mask)
        except InputError:
            continue
