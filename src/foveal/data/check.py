"""Reading a whole data set once: what is in it, and everything that is wrong with it, file by file."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, InputError
from ..images.reading import read_image
from ..info import IGNORE, Labels
from ..progress import Progress
from . import classification, instances, stream, super_resolution
from .classification import ClassificationData, class_folders
from .examples import Examples
from .instances import InstanceData
from .layout import ALL, FILE, DatasetFile, Problem, describe
from .segmentation import SegmentationData
from .segmentation_layouts import LAYOUTS, layout_of, unknown_layout
from .shards import find_shards
from .stream import TarStream
from .super_resolution import SuperResolutionData

_OBJECTS = (instances.POLYGONS, instances.IDS)
_OTHERS = (classification.LAYOUT, super_resolution.LAYOUT, stream.LAYOUT, *_OBJECTS)
_MANY_SIZES = 5  # sizes that a report names


@dataclass
class SplitReport:
    """What one split holds.

    Attributes:
        name: of the split.
        items: samples found.
        readable: samples read without a problem.
        sizes: images of each (H, W).
        pixels: labelled pixels of each class.
        images: images in which each class occurs.
        ignored: pixels that are left out.
        objects: with an outline or an id of their own.
        examples: a few samples, as pictures.
    """

    name: str
    items: int = 0
    readable: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    images: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    ignored: int = 0
    objects: int = 0
    examples: Examples = field(default_factory=Examples)

    @property
    def ignored_share(self) -> float:
        total = int(self.pixels.sum()) + self.ignored
        return self.ignored / total if total else 0.0

    @property
    def shares(self) -> NDArray[np.float64]:
        """Share of each class in the labelled pixels."""
        return self.pixels / max(1, int(self.pixels.sum()))

    def count_classes(self, classes: NDArray[np.integer] | int, num_classes: int) -> bool:
        """Add one image's mask, or its class; whether anything in it is labelled."""
        if not len(self.images):
            self.pixels, self.images = np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64)
        if isinstance(classes, int):
            self.images[classes] += 1
            return True
        counts = np.bincount(classes.ravel(), minlength=IGNORE + 1)
        self.pixels += counts[:num_classes]
        self.images += counts[:num_classes] > 0
        self.ignored += int(counts[IGNORE])
        return bool(counts[:num_classes].any())


@dataclass
class DataReport:
    """What :func:`check_data` found.

    Attributes:
        root: folder of the data set.
        layout: name of the layout; empty where none fits.
        labels: names and palette of the classes.
        splits: one report each.
        problems: what is wrong and where; training on these files fails.
        notes: what is allowed and yet worth a look.
    """

    root: Path
    layout: str = ""
    labels: Labels = field(default_factory=Labels)
    splits: list[SplitReport] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def bad_files(self) -> list[str]:
        """Files with problems, relative to the data set, each once: what ``exclude`` in dataset.yaml takes."""
        files = (p.file for p in self.problems if p.file != self.root and self.root in p.file.parents)
        return list(dict.fromkeys(file.relative_to(self.root).as_posix() for file in files))

    def to_dict(self) -> dict:
        return {
            "root": str(self.root),
            "layout": self.layout,
            "classes": list(self.labels.names),
            "splits": {split.name: self._split(split) for split in self.splits},
            "problems": [{"file": str(p.file), "error": p.error} for p in self.problems],
            "notes": self.notes,
        }

    def _split(self, split: SplitReport) -> dict:
        found: dict = {
            "items": split.items,
            "readable": split.readable,
            "sizes": [{"size": list(size), "images": n} for size, n in split.sizes.most_common()],
        }
        if len(split.images):
            rows = zip(self.labels.names, split.shares.tolist(), split.images.tolist(), strict=True)
            has_pixels = bool(split.pixels.any())
            found["classes"] = {
                name: {"pixels": round(share, 6), "images": n} if has_pixels else {"images": n}
                for name, share, n in rows
            }
        if split.ignored:
            found["ignored"] = round(split.ignored_share, 6)
        if split.objects:
            found["objects"] = split.objects
        return found


def check_data(root: str | Path, *, progress: Progress | None = None) -> DataReport:
    """Read every sample of a data set, of whatever layout, and go on past whatever is wrong.

    Args:
        root: folder of the data set.
        progress: where to show progress; default: nowhere.

    Raises:
        DataError: no such folder.
        ConfigError: ``dataset.yaml`` has unknown keys or values.
        DependencyError: the layout needs a library that is not installed.
    """
    root = Path(root)
    described = describe(root)
    report = DataReport(root)
    progress = progress or Progress(enabled=False)
    try:
        _check(report, described, progress)
    except DataError as error:  # of the data set as a whole: there is nothing to go on with
        report.problems.append(_problem(root, error))
    empty = [split.name for split in report.splits if not split.items]
    if len(empty) < len(report.splits):
        report.problems += [Problem(root / name, "no samples in this split") for name in empty]
    elif not report.problems:
        report.problems.append(Problem(root, "no samples in it"))
    _note_classes(report)
    return report


def _check(report: DataReport, described: DatasetFile, progress: Progress) -> None:
    root, wanted = report.root, described.layout
    if wanted and wanted not in (*_OTHERS, *(layout.name for layout in LAYOUTS)):
        raise unknown_layout(root, described, _OTHERS)
    if wanted not in _OTHERS and (layout := layout_of(root, described)):
        report.layout = layout.name
        _check_masks(report, described, progress)
    elif wanted in _OBJECTS or (not wanted and instances.has_outlines(root)):
        report.layout = instances.layout_of(root, described)
        _check_objects(report, instances.splits_of(root, described), described, progress)
    elif wanted in ("", stream.LAYOUT) and (found := find_shards(root)[2]):
        report.layout = stream.LAYOUT
        _check_tars(report, tuple(found), progress)
    elif wanted in ("", super_resolution.LAYOUT) and (high := super_resolution.high_folders(root, described)):
        report.layout = super_resolution.LAYOUT
        _check_large(report, tuple(high), described, progress)
    elif wanted in ("", classification.LAYOUT) and (by_split := class_folders(root, described)):
        report.layout = classification.LAYOUT
        _check_classes(report, tuple(by_split), progress)
    else:
        raise unknown_layout(root, described, _OTHERS)


# ---- one kind each


def _check_masks(report: DataReport, described: DatasetFile, progress: Progress) -> None:
    layout = layout_of(report.root, described)
    assert layout is not None, "the caller has found it"
    known: dict[str, tuple[str, Path]] = {}
    for name in _wholes(layout.splits(report.root, described)):
        split = SplitReport(name)
        report.splits.append(split)
        try:
            part = layout.open(report.root, [name], described)
        except DataError as error:
            report.problems.append(_problem(report.root, error))
            continue
        report.problems += part.problems
        report.labels = part.labels
        data = SegmentationData(part.pairs, part.labels, part.read, layout.name)
        void: list[str] = []
        for index in _each(data, split, progress):
            path = part.pairs[index][0]
            if sample := _read(data, index, path, report, split):
                image, mask = sample
                split.sizes[image.shape[:2]] += 1
                if not split.count_classes(mask, len(part.labels.names)):
                    void.append(path.name)
                split.examples.offer(path.name, image, mask, part.labels)
                _note_twin(report, known, split.name, path)
        if name in ("train", "training") and len(void) == split.readable > 0:
            report.problems.append(Problem(report.root / name, "no labelled pixel in its masks: nothing to learn from"))
        elif void:
            more = ", ..." if len(void) > 5 else ""
            report.notes.append(f"{name}: nothing labelled in {len(void)} masks, of {', '.join(void[:5])}{more}")


def _check_objects(report: DataReport, splits: Sequence[str], described: DatasetFile, progress: Progress) -> None:
    known: dict[str, tuple[str, Path]] = {}
    for name in _wholes(splits):
        split = SplitReport(name)
        report.splits.append(split)
        data, problems = instances.open_splits(report.root, [name], described)
        report.problems += problems
        for index in _each(data, split, progress):
            path = data.name(index)
            if sample := _read(data, index, path, report, split):
                split.sizes[sample[0].shape[:2]] += 1
                split.objects += len(sample[1])
                split.examples.offer(path.name, sample[0], None, report.labels)
                _note_twin(report, known, split.name, path)


def _check_classes(report: DataReport, splits: Sequence[str], progress: Progress) -> None:
    known: dict[str, tuple[str, Path]] = {}
    for name in _wholes(splits):
        split = SplitReport(name)
        report.splits.append(split)
        try:
            data = ClassificationData.open(report.root, [name])
        except DataError as error:
            report.problems.append(_problem(report.root / name, error))
            continue
        report.labels = data.labels
        for index in _each(data, split, progress):
            path, label = data.files[index]
            if sample := _read(data, index, path, report, split):
                split.sizes[sample[0].shape[:2]] += 1
                split.count_classes(label, len(data.labels.names))
                split.examples.offer(path.name, sample[0], label, data.labels)
                _note_twin(report, known, split.name, path)


def _check_large(report: DataReport, splits: Sequence[str], described: DatasetFile, progress: Progress) -> None:
    """Every scale that there are small images for; without any, the large images alone."""
    for name in _wholes(splits):
        high = super_resolution.high_folders(report.root, described)[name]
        for scale in super_resolution.low_folders(high) or (1,):
            split = SplitReport(name if scale == 1 else f"{name} x{scale}" if scale else f"{name} with small images")
            report.splits.append(split)
            pairs, problems = super_resolution.open_split(report.root, name, scale, described)
            report.problems += problems
            data = SuperResolutionData(tuple(pairs), scale or _scale_of_first(pairs))
            for index in _each(data, split, progress):
                small, large = pairs[index]
                if sample := _read(data, index, small or large, report, split):
                    split.sizes[sample[1].shape[:2]] += 1
                    split.examples.offer(large.name, sample[1], None, report.labels)


def _scale_of_first(pairs: Sequence[tuple[Path | None, Path]]) -> int:
    """The scale that the first readable pair has."""
    for small, large in pairs:
        try:
            assert small is not None
            scale = read_image(large).shape[0] // read_image(small).shape[0]
        except InputError:
            continue
        if scale:
            return scale
    return 1


def _check_tars(report: DataReport, splits: Sequence[str], progress: Progress) -> None:
    for name in _wholes(splits):
        split = SplitReport(name)
        report.splits.append(split)
        bad: list[Problem] = []

        def note(shard: Path, key: str, error: str, bad: list[Problem] = bad) -> None:
            bad.append(Problem(shard / key, error))

        data = TarStream.open(report.root, [name], on_bad=note)
        report.labels = data.labels
        with progress.bar(f"check {name}", len(data.shards)) as bar:
            for shard in data.shards:
                for sample in dataclasses.replace(data, shards=(shard,)):
                    classes = sample.mask if sample.mask is not None else sample.label
                    if classes is None and data.labels.names:
                        note(shard, sample.key, f"{shard}: {sample.key}: neither mask nor class index")
                        continue
                    split.readable += 1
                    split.sizes[sample.image.shape[:2]] += 1
                    if classes is not None and data.labels.names:
                        split.count_classes(classes, len(data.labels.names))
                    split.examples.offer(f"{shard.name}/{sample.key}", sample.image, classes, data.labels)
                bar.advance()
        split.items = split.readable + len(bad)
        report.problems += bad


# ---- what they share


def _wholes(splits: Sequence[str]) -> list[str]:
    """All splits but the one that repeats the others."""
    return [name for name in splits if name != ALL] or list(splits)


def _each(
    data: SegmentationData | ClassificationData | SuperResolutionData | InstanceData,
    split: SplitReport,
    progress: Progress,
) -> Iterator[int]:
    split.items = len(data)
    with progress.bar(f"check {split.name}", len(data)) as bar:
        for index in range(len(data)):
            yield index
            bar.advance()


def _read(data, index: int, path: Path, report: DataReport, split: SplitReport):
    """One sample, or ``None`` after noting why it cannot be read."""
    try:
        sample = data[index]
    except DataError as error:
        report.problems.append(Problem(path, str(error)))
        return None
    split.readable += 1
    return sample


def _problem(where: Path, error: DataError) -> Problem:
    return Problem(where, str(error).removeprefix(f"{where}: "))


def _note_twin(report: DataReport, known: dict[str, tuple[str, Path]], split: str, path: Path) -> None:
    """Note an image that is, byte for byte, also in another split: scores on it say nothing."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    other, twin = known.setdefault(digest, (split, path))
    if other != split:
        report.notes.append(f"{path.relative_to(report.root)} ({split}) is {twin.relative_to(report.root)} ({other})")


def _note_classes(report: DataReport) -> None:
    for split in report.splits:
        if not len(split.images):
            continue
        absent = [name for name, n in zip(report.labels.names, split.images, strict=True) if not n]
        if absent:
            report.notes.append(f"{split.name}: no {', '.join(absent)}; left out of means over classes")
        if split.ignored_share > 0.5:
            report.notes.append(
                f"{split.name}: {split.ignored_share:.0%} of the pixels are ignored; if id {IGNORE} is a class, as in"
                f" masks of black and white, write 'masks: colours' and a palette into {FILE}"
            )
