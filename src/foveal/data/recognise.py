"""Recognise the layout of a data set, and the tasks that take it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import DataError, FovealError
from ..task import TASKS
from . import classification, instances, stream, super_resolution
from .layout import DatasetFile, describe
from .outline_layouts import OUTLINE_LAYOUTS
from .segmentation_layouts import LAYOUTS, layout_of, unknown_layout
from .shards import find_shards, is_pattern

OTHERS = (classification.LAYOUT, super_resolution.LAYOUT, stream.LAYOUT, instances.IDS)  #: not for segmentation
_TASKS = {
    classification.LAYOUT: ("classify",),
    super_resolution.LAYOUT: ("upscale",),
    stream.LAYOUT: ("segment", "classify"),
    instances.IDS: ("prompt",),
    **{layout.name: ("segment",) for layout in LAYOUTS},
    **dict.fromkeys(OUTLINE_LAYOUTS, ("segment", "prompt")),
}


def recognise(root: Path, described: DatasetFile) -> str:
    """Name of the layout of a folder: the one that ``dataset.yaml`` names, else the first that fits.

    Raises:
        DataError: no layout fits, or several do.
    """
    name = described.layout
    if name and name not in _TASKS:
        raise unknown_layout(root, described, OTHERS)
    if name not in OTHERS and (layout := layout_of(root, described)):
        return layout.name
    if name == instances.IDS:
        return instances.layout_of(root, described)
    if name in ("", stream.LAYOUT) and find_shards(root)[2]:
        return stream.LAYOUT
    if name in ("", super_resolution.LAYOUT) and super_resolution.high_folders(root, described):
        return super_resolution.LAYOUT
    if name in ("", classification.LAYOUT) and classification.class_folders(root, described):
        return classification.LAYOUT
    raise unknown_layout(root, described, OTHERS)


@contextmanager
def naming_the_task(data: str | Path, task: str, advice: str) -> Iterator[None]:
    """While data is opened: an error about data that has the layout of another task says which task takes it.

    Errors of tasks without classes stay as they are: these tasks take images of any layout without their labels.

    Args:
        data: folder of the data set, or a pattern of tar files.
        task: name of the task.
        advice: what to do, with ``{}`` for the other task.

    Raises:
        DataError: the data cannot be opened.
    """
    try:
        yield
    except DataError as error:
        try:
            layout = "" if is_pattern(data) else recognise(Path(data), describe(Path(data)))
        except FovealError:
            layout = ""
        tasks = _TASKS.get(layout, (task,))
        if task in tasks or not TASKS[task].has_classes:
            raise
        raise DataError(
            f"{data}: its layout is {layout!r}, which is for the task {tasks[0]!r}, not {task!r}: "
            + advice.format(tasks[0])
        ) from error
