"""Check a whole data set: read every sample once, count what it contains, and report each problem by file."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, InputError
from ..images.bands import RGB, Bands
from ..images.formats import is_image
from ..images.reading import orientation_tag, read_image
from ..info import IGNORE, Labels
from ..progress import Progress
from . import classification, instances, regression, stream, super_resolution
from .bands import D, with_its_bands
from .check_report import DataReport, SplitReport
from .class_map import MANY_ABSENT, abbreviate
from .classification import ClassificationData, class_folders
from .instances import InstanceData
from .labels import class_difference
from .layout import ALL, FILE, DatasetFile, Problem, describe
from .masks import MaskReader, note_black_and_white
from .outlines import OutlineMasks
from .recognition import recognise
from .regression import RegressionData
from .segmentation import SegmentationData
from .segmentation_layouts import LAYOUTS, Layout
from .shards import find_shards
from .stream import StreamSample, TarStream
from .super_resolution import SuperResolutionData
from .tar_members import is_compressed
from .unused_files import note_unused

_SHOWN = 5  # number of files in a note


def check_data(root: str | Path, *, progress: Progress | None = None) -> DataReport:
    """Read every sample of a data set of any layout; problems are collected in the report, not raised.

    Args:
        root: folder of the data set.
        progress: where to show progress; default: nowhere.

    Returns:
        A report with the layout, the splits and their classes, the problems by file, and notes.

    Raises:
        DataError: ``root`` is not a folder.
        ConfigError: ``dataset.yaml`` has unknown keys or values.
        DependencyError: the layout needs a library that is not installed.
    """
    root = Path(root)
    described = describe(root)
    check = _Check(DataReport(root), described, progress or Progress(enabled=False))
    report = check.report
    try:
        _check_layout(check)
    except DataError as error:  # concerns the whole data set, so the check cannot continue
        report.problems.append(_problem(root, error))
    empty = [split.name for split in report.splits if not split.items]
    if len(empty) < len(report.splits):
        report.problems += [Problem(root / name, "no samples in this split") for name in empty]
    elif not report.problems:
        report.problems.append(Problem(root, "no samples in it"))
    _note_classes(report)
    used = check.used | {problem.file for problem in report.problems} | described.excluded(root)
    if report.layout and (note := note_unused(root, used, check.label_folders)):
        report.notes.append(note)
    return report


class _Check:
    """A check in progress: the report, and the steps that the checks of all layouts have in common.

    Attributes:
        report: the report so far.
        root: folder of the data set.
        described: its ``dataset.yaml``.
        progress: where to show progress.
        used: files of the samples so far.
        label_folders: folders of their labels, where these are images.
    """

    def __init__(self, report: DataReport, described: DatasetFile, progress: Progress) -> None:
        self.report, self.root, self.described, self.progress = report, report.root, described, progress
        self.used: set[Path] = set()
        self.label_folders: set[Path] = set()
        self.bands: Bands | None = None  # of the images of the first split
        self._known: dict[str, tuple[str, Path]] = {}  # split and path of the images so far, by the hash of their bytes

    def add_split(self, name: str) -> SplitReport:
        """Begin the report of a split."""
        split = SplitReport(name)
        self.report.splits.append(split)
        return split

    def indices(
        self,
        data: SegmentationData | ClassificationData | SuperResolutionData | InstanceData | RegressionData,
        split: SplitReport,
    ) -> Iterator[int]:
        """The indices of all samples of a split, with a progress bar."""
        split.items = len(data)
        with self.progress.bar(f"check {split.name}", len(data)) as bar:
            for index in range(len(data)):
                yield index
                bar.advance()

    def read(self, data, index: int, path: Path, split: SplitReport):
        """Read a sample; if that fails, add a problem and return ``None``."""
        try:
            sample = data[index]
        except DataError as error:
            self.report.problems.append(Problem(path, str(error)))
            return None
        split.readable += 1
        return sample

    def use(self, pairs: Iterable[tuple[Path | None, Path]]) -> None:
        """Note the files of samples, (image, file with its labels) each."""
        for image, label in pairs:
            self.used |= {label} if image is None else {image, label}
            self.label_folders.add(label.parent if is_image(label) else label.with_suffix(""))

    def note_orientation(self, split: str, pairs: Iterable[tuple[Path, Path]]) -> None:
        """Add a note on images with an orientation tag whose masks have none: only the images are turned."""
        turned = [
            image.name
            for image, mask in pairs
            if is_image(mask) and orientation_tag(image) != 1 and orientation_tag(mask) == 1
        ]
        if turned:
            more = ", ..." if len(turned) > _SHOWN else ""
            self.report.notes.append(
                f"{split}: {len(turned)} images have an orientation tag and their masks have none: "
                f"{', '.join(turned[:_SHOWN])}{more}; the images are turned as viewers show them, the masks are not"
            )

    def note_duplicate(self, split: str, path: Path) -> None:
        """Add a note if an image is byte for byte the same as one of another split, which makes scores useless."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        other, twin = self._known.setdefault(digest, (split, path))
        if other != split:
            own, same = path.relative_to(self.root), twin.relative_to(self.root)
            self.report.notes.append(f"{own} ({split}) is {same} ({other})")


def _check_layout(check: _Check) -> None:
    """Find the layout of the data set and check its splits.

    Raises:
        DataError: no layout fits, or several do.
    """
    root, described, report = check.root, check.described, check.report
    name = report.layout = recognise(root, described)
    if layout := next((layout for layout in LAYOUTS if layout.name == name), None):
        _check_masks(check, layout)
    elif name == stream.LAYOUT:
        _check_tars(check, tuple(find_shards(root)[2]))
    elif name == super_resolution.LAYOUT:
        _check_pairs(check, super_resolution.high_folders(root, described))
    elif name == regression.LAYOUT:
        _check_maps(check, tuple(regression.splits_of(root, described)))
    elif name == classification.LAYOUT:
        _check_classes(check, tuple(class_folders(root, described)))
    else:
        _check_objects(check, instances.splits_of(root, described))


def _check_masks(check: _Check, layout: Layout) -> None:
    report, reader = check.report, None
    notes: dict[str, list[str]] = {}  # and the splits that they are about
    for name in _without_all(layout.splits(check.root, check.described)):
        split = check.add_split(name)
        try:
            part = layout.open(check.root, [name], check.described)
        except DataError as error:
            report.problems.append(_problem(check.root, error))
            continue
        report.problems += part.problems
        for note in part.notes:
            notes.setdefault(note, []).append(name)
        split.items = len(part.pairs)
        check.use(part.pairs)
        check.note_orientation(name, part.pairs)
        if difference := report.labels.names and class_difference(report.labels.names, part.labels.names):
            text = f"other classes than in {report.splits[0].name}: {difference}"
            report.problems.append(Problem(check.root / name, f"{text}; list them all in {FILE} as 'names'"))
            continue
        report.labels = part.labels
        unlabelled: list[str] = []
        invisible: list[str] = []
        data = _with_its_bands(SegmentationData(part.pairs, part.labels, part.read, layout.name), check)
        if isinstance(part.read, OutlineMasks):
            data = dataclasses.replace(data, read_mask=_counting(part.read, split, invisible))
        for index in check.indices(data, split):
            path = part.pairs[index][0]
            if sample := check.read(data, index, path, split):
                image, mask = sample
                split.sizes[image.shape[:2]] += 1
                if not split.count_classes(mask, len(part.labels.names)):
                    unlabelled.append(path.name)
                split.examples.offer(path.name, image, mask, part.labels)
                check.note_duplicate(split.name, path)
        _report_unlabelled(report, split, unlabelled)
        reader = part.read
        if invisible:
            report.notes.append(f"{name}: {len(invisible)} objects cover no pixel: {', '.join(invisible[:_SHOWN])}")
    report.notes += [note if len(names) > 1 else f"{names[0]}: {note}" for note, names in notes.items()]
    _note_black_and_white(report, reader)


def _counting(masks: OutlineMasks, split: SplitReport, invisible: list[str]) -> MaskReader:
    """A reader of the same masks that counts their objects, and lists those whose outline covers no pixel."""

    def read(image: Path, file: Path) -> NDArray[np.unsignedinteger]:
        outlines, size = masks.outlines(image, file)
        mask = masks.draw(outlines, size, f"{file}: damaged annotation of {image.name}")
        split.objects += len(outlines)
        invisible.extend(f"{x.name} of {image.name}" for x in outlines if len(x.runs) and not x.has_pixels)
        return mask

    return read


def _with_its_bands(data: D, check: _Check) -> D:
    """The same samples with the bands that training would read, those of the first split; with a note if not RGB."""
    if check.bands:
        return data.with_bands(check.bands)
    try:
        data = with_its_bands(data, check.described)
    except DataError:  # no image can be read, which the check reports for each
        return data
    check.bands = data.bands
    if data.bands != RGB:
        check.report.notes.append(f"the images have {data.bands}; models of the data take these")
    return data


def _report_unlabelled(report: DataReport, split: SplitReport, names: Sequence[str]) -> None:
    """Masks without a labelled pixel are worth a note, but a problem if they are all masks for training."""
    if split.name in ("train", "training") and len(names) == split.readable > 0:
        report.problems.append(
            Problem(report.root / split.name, "no labelled pixel in any of its masks, so nothing can be learnt")
        )
    elif names:
        more = ", ..." if len(names) > _SHOWN else ""
        report.notes.append(f"{split.name}: no labelled pixel in {len(names)} masks: {', '.join(names[:_SHOWN])}{more}")


def _check_objects(check: _Check, splits: Sequence[str]) -> None:
    for name in _without_all(splits):
        split = check.add_split(name)
        data, problems = instances.open_splits(check.root, [name], check.described)
        check.report.problems += problems
        check.use(data.pairs)
        check.note_orientation(name, data.pairs)
        for index in check.indices(data, split):
            path = data.name(index)
            if sample := check.read(data, index, path, split):
                split.sizes[sample[0].shape[:2]] += 1
                split.objects += len(sample[1])
                split.examples.offer(path.name, sample[0], None, check.report.labels)
                check.note_duplicate(split.name, path)


def _check_classes(check: _Check, splits: Sequence[str]) -> None:
    for name in _without_all(splits):
        split = check.add_split(name)
        try:
            data = ClassificationData.open(check.root, [name])
        except DataError as error:
            check.report.problems.append(_problem(check.root / name, error))
            continue
        check.report.labels = data.labels
        check.used |= {path for path, _ in data.files}
        data = _with_its_bands(data, check)
        for index in check.indices(data, split):
            path, label = data.files[index]
            if sample := check.read(data, index, path, split):
                split.sizes[sample[0].shape[:2]] += 1
                split.count_classes(label, len(data.labels.names))
                split.examples.offer(path.name, sample[0], label, data.labels)
                check.note_duplicate(split.name, path)


def _check_maps(check: _Check, splits: Sequence[str]) -> None:
    """Check images with maps of values; a note for each split gives their range and the share of valid pixels."""
    for name in _without_all(splits):
        split = check.add_split(name)
        files, problems = regression.open_splits(check.root, [name], check.described)
        check.report.problems += problems
        check.use((image, label) for image, *labels in files for label in labels if label)
        check.label_folders |= regression.other_folders(files)
        try:
            data = RegressionData.open(check.root, [name]) if files and not problems else None
        except DataError as error:
            check.report.problems.append(_problem(check.root, error))
            continue
        if data is None:
            split.items = len(files) + len(problems)
            continue
        check.report.labels = data.labels
        data = _with_its_bands(data, check)
        valid, pixels, low, high = 0, 0, np.inf, -np.inf
        for index in check.indices(data, split):
            path = data.name(index)
            if sample := check.read(data, index, path, split):
                image, values = sample
                measured = values[np.isfinite(values).all(2)]
                valid, pixels = valid + len(measured), pixels + values[..., 0].size
                low, high = min(low, measured.min(initial=np.inf)), max(high, measured.max(initial=-np.inf))
                split.sizes[image.shape[:2]] += 1
                split.examples.offer(path.name, image, None, data.labels)
                check.note_duplicate(split.name, path)
        if valid:
            kind = f"{data.target.kind} of {low:g} to {high:g} {data.target.unit}".rstrip()
            check.report.notes.append(f"{name}: {kind}, in {valid / pixels:.1%} of the pixels")
        elif pixels:
            check.report.problems.append(Problem(check.root / name, "no valid pixel in any of its maps"))


def _check_pairs(check: _Check, folders: Mapping[str, Path]) -> None:
    """Check the pairs of every scale for which there are small images; without any, check the large images."""
    for name in _without_all(tuple(folders)):
        for scale in super_resolution.low_folders(folders[name]) or (1,):
            split = check.add_split(
                name if scale == 1 else f"{name} x{scale}" if scale else f"{name} with small images"
            )
            pairs, problems = super_resolution.open_split(check.root, name, scale, check.described)
            check.report.problems += problems
            check.used |= {path for pair in pairs for path in pair if path}
            data = SuperResolutionData(tuple(pairs), scale or _scale_of_first(pairs))
            for index in check.indices(data, split):
                small, large = pairs[index]
                if sample := check.read(data, index, small or large, split):
                    split.sizes[sample[1].shape[:2]] += 1
                    split.examples.offer(large.name, sample[1], None, check.report.labels)


def _scale_of_first(pairs: Sequence[tuple[Path | None, Path]]) -> int:
    """The scale of the first readable pair."""
    for small, large in pairs:
        try:
            assert small is not None
            scale = read_image(large).shape[0] // read_image(small).shape[0]
        except InputError:
            continue
        if scale:
            return scale
    return 1


def _check_tars(check: _Check, splits: Sequence[str]) -> None:
    reader = None
    for name in _without_all(splits):
        split = check.add_split(name)
        bad: list[Problem] = []

        def note(shard: Path, key: str, error: str, bad: list[Problem] = bad) -> None:
            bad.append(Problem(shard / key, error))

        data = TarStream.open(check.root, [name], on_bad=note)
        if check.described.mean and check.described.dtype:
            data = dataclasses.replace(data, bands=Bands(len(check.described.mean), check.described.dtype))
        check.report.labels = data.labels
        with check.progress.bar(f"check {name}", len(data.shards)) as bar:
            for shard in data.shards:
                if is_compressed(shard):
                    bad.append(Problem(shard, "compressed; unpack it, since samples are read at their offsets"))
                    continue
                for sample in dataclasses.replace(data, shards=(shard,)):
                    if not _count_tar_sample(split, shard, sample, data.labels):
                        note(shard, sample.key, f"{shard}: {sample.key}: neither mask nor class index")
                bar.advance()
        split.items = split.readable + len(bad)
        check.report.problems += bad
        reader = data.masks
    _note_black_and_white(check.report, reader)


def _count_tar_sample(split: SplitReport, shard: Path, sample: StreamSample, labels: Labels) -> bool:
    """Count a sample; ``False`` if it needs a label and has none."""
    classes = sample.mask if sample.mask is not None else sample.label
    if classes is None and labels.names:
        return False
    split.readable += 1
    split.sizes[sample.image.shape[:2]] += 1
    if classes is not None and labels.names:
        split.count_classes(classes, len(labels.names))
    split.examples.offer(f"{shard.name}/{sample.key}", sample.image, classes, labels)
    return True


def _note_black_and_white(report: DataReport, reader: object) -> None:
    counted = [split for split in report.splits if len(split.pixels)]
    pixels = sum((split.pixels for split in counted), np.zeros(len(report.labels.names), np.int64))
    if note := note_black_and_white(reader, pixels, sum(split.ignored for split in counted)):
        report.notes.append(note)


def _without_all(splits: Sequence[str]) -> list[str]:
    """The splits without "all", which repeats the others, unless it is the only one."""
    return [name for name in splits if name != ALL] or list(splits)


def _problem(path: Path, error: DataError) -> Problem:
    return Problem(path, str(error).removeprefix(f"{path}: "))


def _note_classes(report: DataReport) -> None:
    """Add notes on names that differ in case, on classes that a split does not have, and on mostly ignored splits."""
    folded = Counter(name.strip().casefold() for name in report.labels.names)
    if same := [name for name in report.labels.names if folded[name.strip().casefold()] > 1]:
        report.notes.append(f"{', '.join(map(repr, same))} differ in case or spaces alone; are they one class?")
    for split in report.splits:
        if not len(split.images):
            continue
        absent = [name for name, n in zip(report.labels.names, split.images, strict=True) if not n]
        if absent:
            listed = abbreviate(absent) if len(absent) > MANY_ABSENT else ", ".join(absent)
            report.notes.append(f"{split.name}: no {listed}; left out of means over classes")
        if split.ignored_share > 0.5:
            report.notes.append(
                f"{split.name}: {split.ignored_share:.0%} of the pixels are ignored; if id {IGNORE} is a class,"
                f" list it under 'ids' in {FILE}"
            )
