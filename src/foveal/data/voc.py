"""Pascal VOC, and what label tools export in its folders: images, masks, lists of the splits, names of the classes.

::

    ROOT/JPEGImages/a.jpg
    ROOT/SegmentationClass/a.png            palette, ids or colours; SegmentationClassPNG/ comes first if it exists
    ROOT/ImageSets/Segmentation/train.txt   one stem per line; without train, val and test, all samples are one split
    ROOT/labelmap.txt                       lines "name:r,g,b:parts:actions"; or class_names.txt, labels.txt: "name"
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError, InputError
from ..images.formats import SUFFIXES
from ..images.reading import read_image, read_mask
from ..info import IGNORE, Labels, ignore_id
from .label_files import read_text
from .layout import ALL, SPLIT_NAMES, DatasetFile, Problem, by_stem, draw_splits, images_in
from .masks import Colour, ColourMasks, IdMasks, mask_type, plain_ids

IMAGES = "JPEGImages"
_MASKS = ("SegmentationClassPNG", "SegmentationClass")
_LISTS = "ImageSets/Segmentation"
_NAME_FILES = ("labelmap.txt", "class_names.txt", "labels.txt")
_COLOURS = "label_colors.txt"
_BORDER = (224, 224, 192)  # colour of id 255 in the masks of VOC: borders of objects, ignored
_OF_VOC = re.compile(r"20(0\d|1[0-2])_\d{6}")  # stems of the published images
_WHITE = (255, 255, 255)
_MAX_BYTES = 64 << 20  # of a list or a table of classes
_SHOWN = 5  # names in a note

#: The classes of VOC 2007 to 2012.
CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def masks_folder(root: Path) -> Path | None:
    """The folder of masks; ``None`` if ``root`` does not have VOC's folders."""
    if not (root / IMAGES).is_dir():
        return None
    return next((root / name for name in _MASKS if images_in(root / name)), None)


def splits_of(root: Path, described: DatasetFile) -> tuple[str, ...]:
    """Names of the splits: the lists train, val and test; without these, "all", and those that ``val_share`` draws."""
    if masks_folder(root) is None:
        return ()
    names = tuple(path.stem for path in _lists(root) if path.stem in SPLIT_NAMES)
    return names or (("train", "val", ALL) if described.val_share else (ALL,))


def find_pairs(
    root: Path, splits: Sequence[str], described: DatasetFile
) -> tuple[list[tuple[Path, Path]], list[Problem]]:
    """The images and masks of some splits, and a problem for each listed name without one of them."""
    folder, excluded = masks_folder(root), described.excluded(root)
    assert folder is not None, "splits_of found it"
    images = by_stem(images_in(root / IMAGES, deep=True), root / IMAGES)
    masks = by_stem(images_in(folder, deep=True), folder)
    pairs: dict[tuple[Path, Path], None] = {}
    problems: dict[Problem, None] = {}
    for name, source in _names(root, splits, described, masks).items():
        own_images, own_masks = images.get(name, []), masks.get(name, [])
        files = [*own_images, *own_masks]
        if excluded.intersection(files):
            continue
        for own in (own_images, own_masks):
            problems |= {Problem(path, f"has the same stem as {own[0].name}"): None for path in own[1:]}
        if own_images and own_masks:
            pairs[own_images[0], own_masks[0]] = None
        else:
            missing = " or ".join(f.name for f, own in ((root / IMAGES, own_images), (folder, own_masks)) if not own)
            file = files[0] if files else source
            problems[Problem(file, f"{source.name} lists {name[:100]!r}, which has no file in {missing}")] = None
    return sorted(pairs), list(problems)


def note_unlisted(root: Path, described: DatasetFile) -> tuple[str, ...]:
    """A note if there are masks that no list names."""
    folder, lists = masks_folder(root), _lists(root)
    if folder is None or not lists:
        return ()
    listed = {name for path in lists for name in _read_lines(path)}
    excluded = described.excluded(root)
    masks = by_stem((p for p in images_in(folder, deep=True) if p not in excluded), folder)
    unlisted = sorted(masks.keys() - listed)
    if not unlisted:
        return ()
    more = ", ..." if len(unlisted) > _SHOWN else ""
    return (f"{len(unlisted)} masks are in no list of {_LISTS}: {', '.join(unlisted[:_SHOWN])}{more}",)


def _names(
    root: Path, splits: Sequence[str], described: DatasetFile, masks: Mapping[str, Sequence[Path]]
) -> dict[str, Path]:
    """The stems of some splits, each with the file that names it: a list, or the mask if there are no lists."""
    lists = {path.stem: path for path in _lists(root)}
    if any(name in SPLIT_NAMES for name in lists):
        return {name: lists[split] for split in splits for name in _read_lines(lists[split])}
    names = {name: path for path in lists.values() for name in _read_lines(path)}
    names = names or {name: paths[0] for name, paths in masks.items()}
    drawn = draw_splits(names, described)
    return {name: names[name] for split in splits for name in drawn[split]}


def _lists(root: Path) -> list[Path]:
    return sorted(path for path in (root / _LISTS).glob("*.txt") if path.is_file())


def _read_lines(file: Path) -> dict[str, None]:
    """The lines of a list, without suffixes of images and without repetitions."""
    lines = (line.strip() for line in read_text(file, _MAX_BYTES).splitlines())
    return {line.removesuffix(_image_suffix(line)): None for line in lines if line}


def _image_suffix(name: str) -> str:
    suffix = Path(name).suffix
    return suffix if suffix.lower() in SUFFIXES else ""


# ---- classes


def read_labels(root: Path, stems: Iterable[str]) -> tuple[Labels, Path | None]:
    """Names and colours of the classes, and ``labelmap.txt`` if they are from there.

    They are VOC's own for its published images; there are none for other images without a file of names.

    Raises:
        DataError: the file of names cannot be read, has a line that is not a class, or two classes of one name or
            colour.
    """
    file = next((root / name for name in _NAME_FILES if (root / name).is_file()), None)
    if file is None:
        published = all(_OF_VOC.fullmatch(stem) for stem in stems)
        return (Labels(CLASSES, tuple(map(_voc_colour, range(len(CLASSES))))) if published else Labels()), None
    names: list[str] = []
    colours: list[Colour] = []
    coloured = file.name == _NAME_FILES[0]
    for number, line in enumerate(read_text(file, _MAX_BYTES).splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, _, rest = line.strip().partition(":") if coloured else (line.strip(), "", "")
        if name == "__ignore__":  # labelme's name of id 255
            continue
        colour = rest.partition(":")[0]
        names.append(name)
        colours.append(_parse_colour(colour, f"{file}: line {number}") if colour else _voc_colour(len(colours)))
    return _checked_labels(names, colours, file), file if coloured else None


def _checked_labels(names: Sequence[str], colours: Sequence[Colour], file: Path) -> Labels:
    """The classes of a file.

    Raises:
        DataError: there are none, or two have one name or colour.
    """
    if not names:
        raise DataError(f"{file}: no classes in it; write one per line")
    for what, values in (("called", names), ("of the colour", colours)):
        if len(set(values)) < len(values):
            twice = Counter(values).most_common(1)[0][0]
            raise DataError(f"{file}: two classes are {what} {str(twice)[:80]}")
    return Labels(tuple(names), tuple(colours))


def read_coloured(root: Path, described: DatasetFile) -> tuple[Labels, VocMasks] | None:
    """Classes and masks by ``label_colors.txt``, with lines "red green blue name".

    CVAT adds that file to its exports in the layouts of CamVid and Cityscapes, whose classes are then its own.

    Returns:
        ``None`` without the file, and if ``dataset.yaml`` has names.

    Raises:
        DataError: the file cannot be read, or two classes have one name or colour.
    """
    file = root / _COLOURS
    if not file.is_file() or described.names or described.masks != "ids":
        return None
    names: list[str] = []
    colours: list[Colour] = []
    for number, line in enumerate(read_text(file, _MAX_BYTES).splitlines(), start=1):
        *values, name = line.split(maxsplit=3) or [""]
        if name and not line.startswith("#"):
            names.append(name.strip())
            colours.append(_parse_colour(",".join(values), f"{file}: line {number}"))
    labels = _checked_labels(names, colours, file)
    ignored = described.ignored_of(len(labels.names))
    return labels, VocMasks(labels, file, ignored, described.ignore_colours, described.unknown == "ignore")


def _parse_colour(text: str, where: str) -> Colour:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 3 or not all(part.isdecimal() and len(part) < 4 and int(part) < 256 for part in parts):
        raise DataError(f"{where}: {text[:40]!r} is not a colour; write name:red,green,blue with numbers from 0 to 255")
    return int(parts[0]), int(parts[1]), int(parts[2])


def _voc_colour(index: int) -> Colour:
    """Colour of a class in VOC's palette: its bits are dealt out to red, green and blue in turn, high bits first."""
    red, green, blue = (
        sum((index >> 3 * place + channel & 1) << 7 - place for place in range(8)) for channel in range(3)
    )
    return red, green, blue


# ---- masks


@dataclass(frozen=True)
class VocMasks:
    """Reader of masks whose classes have colours: the colours decide in palette and colour masks, ids in grey ones.

    Attributes:
        labels: names and colours of the classes.
        source: the file that they are from, for messages.
        ignore: ids of ignored pixels.
        ignore_colours: colours of ignored pixels, in addition to that of VOC's borders.
        ignore_unknown: whether unknown ids and colours are ignored; otherwise the mask is refused.
    """

    labels: Labels
    source: Path
    ignore: tuple[int, ...] = (IGNORE,)
    ignore_colours: tuple[Colour, ...] = ()
    ignore_unknown: bool = False

    def __call__(self, image: Path, mask: Path, /) -> NDArray[np.unsignedinteger]:
        """Read one mask.

        Raises:
            DataError: the mask is unreadable, or has unknown ids or colours.
        """
        mode = _mode(mask)
        if mode == "P":
            return self._read_palette(mask)
        if mode.startswith(("RGB", "CMYK")):
            ignored = tuple({_BORDER, *self.ignore_colours} - {*self.labels.palette})
            return ColourMasks(self.labels.palette, ignored, self.ignore_unknown)(image, mask)
        return self._grey_masks()(image, mask)

    def _grey_masks(self) -> IdMasks:
        count = len(self.labels.names)
        return IdMasks(plain_ids(count, self.ignore), count, self.ignore_unknown, self.labels.palette)

    @property
    def black_and_white(self) -> IdMasks | None:
        """The reader of grey masks if a class is white: 255 in them may be meant as that class; else ``None``."""
        return self._grey_masks() if _WHITE in self.labels.palette else None

    def _read_palette(self, mask: Path) -> NDArray[np.unsignedinteger]:
        """The order of a palette need not be that of the classes, so each id has the class of its colour."""
        try:
            ids, colours = read_mask(mask), read_image(mask)
        except InputError as error:
            raise DataError(str(error)) from error
        count = len(self.labels.names)
        class_of = dict.fromkeys((_BORDER, *self.ignore_colours), ignore_id(count))
        class_of |= {colour: place for place, colour in enumerate(self.labels.palette)}
        table = np.full(256, ignore_id(count), mask_type(count))
        used, first = np.unique(ids, return_index=True)
        for i, colour in zip(used.tolist(), colours.reshape(-1, 3)[first].tolist(), strict=True):
            if i in self.ignore or (self.ignore_unknown and tuple(colour) not in class_of):
                continue
            if tuple(colour) not in class_of:
                raise DataError(
                    f"{mask}: id {i} has the colour {tuple(colour)}, which is not in {self.source.name}; add it there,"
                    " or write 'names' into dataset.yaml to use the ids without their colours"
                )
            table[i] = class_of[tuple(colour)]
        return table[ids]


def _mode(mask: Path) -> str:
    """Pillow's name of the kind of pixels; empty if the file is unreadable, which its reader then says."""
    try:
        with Image.open(mask, formats=("PNG", "BMP", "TIFF")) as image:
            return image.mode
    except (OSError, ValueError, SyntaxError):
        return ""
