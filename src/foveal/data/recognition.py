"""Which layout the folder of a data set has, and which tasks learn from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ..errors import DataError, FovealError
from ..task import TASKS
from . import classification, instances, regression, segmentation_layouts, stream, super_resolution
from .brush_masks import brush_mask_error, find_brush_mask
from .layout import ALL, DatasetFile, UnknownLayoutError, describe
from .outline_layouts import OUTLINE_LAYOUTS
from .shards import find_shards, is_pattern

#: Names of the layouts that are not in ``segmentation_layouts``.
OTHERS = (classification.LAYOUT, super_resolution.LAYOUT, stream.LAYOUT, instances.IDS, regression.LAYOUT)

_LAYOUTS: Mapping[str, tuple[str, ...]] = {  # of each task
    "segment": (*(layout.name for layout in segmentation_layouts.LAYOUTS), stream.LAYOUT),
    "classify": (classification.LAYOUT, stream.LAYOUT),
    "upscale": (super_resolution.LAYOUT,),
    "regress": (regression.LAYOUT,),
    "prompt": (instances.IDS, *OUTLINE_LAYOUTS),
}

#: Names of the splits of data in folders, by task.
_SPLITS: Mapping[str, Callable[[Path, DatasetFile], Iterable[str]]] = {
    "segment": lambda root, described: (
        layout.splits(root, described) if (layout := segmentation_layouts.layout_of(root, described)) else ()
    ),
    "classify": lambda root, described: (
        split for split, classes in classification.class_folders(root, described).items() if any(classes.values())
    ),
    "upscale": super_resolution.sets_of,
    "regress": regression.splits_of,
    "prompt": instances.splits_of,
}


_PREFERRED = ("test", "testing", "val", "valid", "validation", ALL)  # for evaluation


def recognise(root: Path, described: DatasetFile) -> str:
    """The name of the layout that a folder has.

    Raises:
        DataError: no layout fits, several do, or the one that ``dataset.yaml`` names does not.
    """
    name = described.layout
    if name and name not in {each for names in _LAYOUTS.values() for each in names}:
        raise segmentation_layouts.unknown_layout(root, described, OTHERS)
    if name not in OTHERS and (layout := segmentation_layouts.layout_of(root, described)):
        return layout.name
    if not name and (brush := find_brush_mask(root)):  # otherwise they are large images for super-resolution
        raise brush_mask_error(brush)
    if name == instances.IDS:
        return instances.layout_of(root, described)
    if name in ("", regression.LAYOUT) and regression.splits_of(root, described):
        return regression.LAYOUT
    if name in ("", stream.LAYOUT) and find_shards(root)[2]:
        return stream.LAYOUT
    if name in ("", super_resolution.LAYOUT) and (folders := super_resolution.high_folders(root, described)):
        are_stray = not name and root in folders.values() and _has_classes(root, described)
        if not are_stray:  # images beside folders of classes
            return super_resolution.LAYOUT
    if not name and segmentation_layouts.inner_layout(root):
        raise segmentation_layouts.unknown_layout(root, described, OTHERS)
    if name in ("", classification.LAYOUT) and classification.class_folders(root, described):
        return classification.LAYOUT
    raise segmentation_layouts.unknown_layout(root, described, OTHERS)


def _has_classes(root: Path, described: DatasetFile) -> bool:
    try:
        by_split = classification.class_folders(root, described)
    except DataError:
        return False
    return len({name for folders in by_split.values() for name in folders}) > 1


def _may_be_meant_for(task: str, root: Path) -> bool:
    """Whether images without labels may be meant for a task: one without classes, or they are not even in splits."""
    return not TASKS[task].has_classes or root in super_resolution.high_folders(root, describe(root)).values()


def tasks_of(layout: str) -> tuple[str, ...]:
    """The tasks that learn from data of a layout."""
    return tuple(task for task, names in _LAYOUTS.items() if layout in names)


def split_names(data: str | Path, task: str) -> tuple[str, ...]:
    """Names of the splits of a data set for a task; empty if no layout fits.

    Raises:
        DataError: several layouts fit, or the folder does not exist.
        ConfigError: ``dataset.yaml`` has unknown keys or values.
    """
    if not is_pattern(data):
        root = Path(data)
        if names := tuple(_SPLITS[task](root, describe(root))):
            return names
    return tuple(find_shards(data)[2])


def default_split(data: str | Path, task: str) -> str:
    """The split to evaluate: "test" if it exists, else "val", else "all", else the only one of a pattern of tar files.

    Raises:
        DataError, ConfigError: as :func:`split_names`.
    """
    names = split_names(data, task)
    if is_pattern(data) and len(names) == 1:
        return names[0]
    return next((name for name in _PREFERRED if name in names), _PREFERRED[0])


@contextmanager
def explain_wrong_layout(data: str | Path, task: str) -> Iterator[None]:
    """Context manager: if data cannot be opened for ``task`` because of its layout, the error says what it is for.

    For tasks without classes that is so only if no layout fits: they may take images without the labels of a layout.
    """
    try:
        yield
    except DataError as error:
        if is_pattern(data) or not (TASKS[task].has_classes or isinstance(error, UnknownLayoutError)):
            raise
        root = Path(data)
        try:
            tasks = tasks_of(layout := recognise(root, describe(root)))
        except FovealError:
            raise error from None
        if task in tasks or (layout == super_resolution.LAYOUT and _may_be_meant_for(task, root)):
            raise
        fact = f"has the layout {layout!r}, which is for the task {' and '.join(map(repr, tasks))}, not for {task!r}"
        advice = f"train with --task {tasks[0]}, or evaluate a model of that task"
        if isinstance(error, UnknownLayoutError):
            raise DataError(f"{root}: {fact}: {advice}") from error
        raise DataError(f"{error}; {root} {fact}: {advice}") from error
