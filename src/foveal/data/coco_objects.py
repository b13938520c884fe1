"""The objects of an image from the annotations of COCO's JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError
from .label_files import Id, as_id
from .outlines import (
    DAMAGE,
    NO_RUNS,
    Box,
    Outline,
    Size,
    check_lengths,
    check_object_count,
    damaged,
    polygon_runs,
    polygons_of,
    rle_runs,
)

_SHOWN = 3  # annotations in a note

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
    if entry.size is not None and entry.size != size:
        raise DataError(
            f"{file}: mask of {entry.size[1]}x{entry.size[0]} (W x H) for the image {image.name} of {size[1]}x{size[0]}"
        )
    try:
        check_object_count(len(entry.annotations))
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
        raise damaged(file, image, error, name) from error
    return outlines


def has_outline(segmentation: object) -> bool:
    """Whether there is more than empty lists, which stand for a box without an outline."""
    return any(part != [] for part in segmentation) if isinstance(segmentation, list) else bool(segmentation)


def _box(values: Any) -> Box | None:
    """x1, y1, x2, y2 of a box in COCO's format; ``None`` without one or if it is empty."""
    if not values:
        return None
    if not isinstance(values, list) or len(values) != 4:
        raise ValueError(f"{values!r:.40} where x, y, width and height of a box are expected")
    x, y, width, height = map(float, values)
    known = width > 0 and height > 0 and all(map(math.isfinite, (x, y, x + width, y + height)))
    return (x, y, x + width, y + height) if known else None


def note_objects(pairs: Sequence[tuple[Path, Path]], entries: Mapping[Path, Entry]) -> list[str]:
    """Notes on objects without an outline, on parts that are left out or cut off, and on ids that occur twice."""
    kinds: dict[str, list[str]] = {}
    seen: set[tuple[Path, Id]] = set()
    for image, file in pairs:
        entry = entries[image]
        for annotation in entry.annotations:
            segmentation, number = annotation.get("segmentation"), annotation.get("id")
            kind = _oddity(annotation, segmentation, entry.size)
            if kind:
                kinds.setdefault(kind, []).append(name_of(annotation))
            if isinstance(number, str | int):
                if (file, number) in seen:
                    kinds.setdefault("have the id of another one", []).append(name_of(annotation))
                seen.add((file, number))
    total = sum(len(entries[image].annotations) for image, _ in pairs)
    return [f"{len(names)} of {total} objects {kind}: {some_of(names)}" for kind, names in kinds.items()]


def _oddity(annotation: Annotation, segmentation: Any, size: Size | None) -> str:
    """What is unusual about an annotation that is read nevertheless; empty if nothing is."""
    if not has_outline(segmentation):
        if annotation.get("bbox"):
            return "have a box and no outline, so the pixels of the box are ignored"
        return "have neither outline nor box, so their pixels are background"
    if not isinstance(segmentation, list):
        return ""
    lengths = [len(part) for part in segmentation if isinstance(part, list)]
    if lengths and min(lengths) < 6 <= max(lengths):
        return "have parts of fewer than three points, which are left out"
    try:
        if size and any(_leaves(part, size) for part in segmentation):
            return "leave the image, where they are cut off"
    # Other forms of polygons, or damage that reading the image will refuse.
    except (LookupError, TypeError, ValueError):
        pass
    return ""


def _leaves(polygon: Sequence[float], size: Size) -> bool:
    """Whether a polygon leaves an image of (H, W) by more than a hundredth."""
    height, width = size
    x, y = polygon[::2], polygon[1::2]
    return max(x) > 1.01 * width or max(y) > 1.01 * height or min(x) < -0.01 * width or min(y) < -0.01 * height


def name_of(annotation: Annotation) -> str:
    """An annotation by its id, for messages."""
    return f"annotation {annotation['id']!r:.40}" if annotation.get("id") is not None else "an annotation without id"


def some_of(names: Sequence[str]) -> str:
    """The first of many names, for notes."""
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
