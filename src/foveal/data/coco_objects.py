"""The objects of an image from the annotations of COCO's JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError
from .listed_files import Id, as_id
from .outlines import NO_RUNS, Box, Outline, Size, check_count, check_lengths, polygon_runs, polygons_of, rle_runs

_SHOWN = 3  # annotations in a note
DAMAGE = (KeyError, TypeError, ValueError, IndexError, OverflowError)  #: what a value of a wrong kind raises

Annotation = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """An image in a JSON file: its (H, W) if the file has it, and its annotations."""

    size: Size | None
    annotations: tuple[Annotation, ...]


def read_objects(entries: Mapping[Path, Entry], image: Path, file: Path, size: Size) -> list[Outline]:
    """The objects of an image.

    Raises:
        DataError: an annotation is damaged, or the file gives another size for the image.
        DependencyError: there are polygons, and pycocotools is not installed.
    """
    entry, outlines, length, name = entries[image], list[Outline](), 0.0, "its list"
    if entry.size not in (None, size):
        raise DataError(
            f"{file}: mask of {entry.size[1]}x{entry.size[0]} (W x H) for the image {image.name} of {size[1]}x{size[0]}"
        )
    try:
        check_count(len(entry.annotations))
        for annotation in entry.annotations:
            name = name_of(annotation)
            segmentation, runs = annotation.get("segmentation"), NO_RUNS
            if isinstance(segmentation, list) and has_outline(segmentation):
                polygons, _ = polygons_of(segmentation)
                length = check_lengths(polygons, length)
                runs = polygon_runs(polygons, size)
            elif segmentation and not isinstance(segmentation, list):
                runs = rle_runs(segmentation, size)
            area = annotation.get("area")
            outlines.append(
                Outline(
                    name,
                    as_id(annotation.get("category_id")),
                    runs,
                    _box(annotation.get("bbox")),
                    None if area is None or not math.isfinite(float(area)) else float(area),
                    bool(int(annotation.get("iscrowd") or 0)),
                )
            )
    except DAMAGE as error:
        raise DataError(f"{file}: damaged annotation of {image.name} ({name}: {reason_of(error)})") from error
    return outlines


def has_outline(segmentation: object) -> bool:
    """Whether there is more than empty lists, which stand for a box without an outline."""
    return any(part != [] for part in segmentation) if isinstance(segmentation, list) else bool(segmentation)


def _box(values: Any) -> Box | None:
    """x1, y1, x2, y2 of a box in COCO's format; ``None`` without one or if it is empty."""
    if not values:
        return None
    x, y, width, height = map(float, values)
    known = width > 0 and height > 0 and all(map(math.isfinite, (x, y, width, height)))
    return (x, y, x + width, y + height) if known else None


def note_objects(pairs: Sequence[tuple[Path, Path]], entries: Mapping[Path, Entry]) -> list[str]:
    """Notes on objects without an outline, on parts that are left out, and on ids that occur twice; one of each."""
    boxes: list[str] = []
    stray: list[str] = []
    twice: list[str] = []
    seen: set[tuple[Path, Id]] = set()
    total = 0
    for image, file in pairs:
        for annotation in entries[image].annotations:
            total += 1
            segmentation, number = annotation.get("segmentation"), annotation.get("id")
            if not has_outline(segmentation):
                boxes.append(name_of(annotation))
            elif isinstance(segmentation, list) and _has_stray_parts(segmentation):
                stray.append(name_of(annotation))
            if isinstance(number, str | int):
                if (file, number) in seen:
                    twice.append(name_of(annotation))
                seen.add((file, number))
    notes = []
    if boxes:
        notes.append(
            f"{len(boxes)} of {total} objects have no outline: {some_of(boxes)}; the pixels of their boxes are ignored"
        )
    if stray:
        notes.append(f"parts of fewer than three points are left out of {len(stray)} objects: {some_of(stray)}")
    if twice:
        notes.append(f"{len(twice)} annotations have the id of another one: {some_of(twice)}")
    return notes


def _has_stray_parts(segmentation: Sequence[Any]) -> bool:
    """Whether :func:`polygons_of` leaves out a part."""
    lengths = [len(part) for part in segmentation if isinstance(part, list)]
    return bool(lengths) and min(lengths) < 6 <= max(lengths)


def name_of(annotation: Annotation) -> str:
    """An annotation by its id, for messages."""
    return f"annotation {annotation['id']!r:.40}" if annotation.get("id") is not None else "an annotation without id"


def some_of(names: Sequence[str]) -> str:
    """The first of many names, for notes."""
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def reason_of(error: Exception) -> str:
    """The text of an error of :data:`DAMAGE`."""
    return f"there is no {error}" if isinstance(error, KeyError) else str(error)
