"""What a check of a data set found: counts for each split, problems and notes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..info import Labels, ignore_id
from .examples import Examples
from .layout import Problem
from .recognition import tasks_of


@dataclass
class SplitReport:
    """The content of one split.

    Attributes:
        name: name of the split.
        items: number of samples.
        readable: number of samples that were read without a problem.
        sizes: number of images by (H, W).
        pixels: number of labelled pixels of each class.
        images: number of images in which each class occurs.
        ignored: number of ignored pixels.
        objects: number of objects with an outline or an id of their own.
        examples: a few samples as thumbnails.
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
        """Share of ignored pixels in all pixels."""
        total = int(self.pixels.sum()) + self.ignored
        return self.ignored / total if total else 0.0

    @property
    def shares(self) -> NDArray[np.float64]:
        """Share of each class in the labelled pixels."""
        return self.pixels / max(1, int(self.pixels.sum()))

    def count_classes(self, classes: NDArray[np.integer] | int, num_classes: int) -> bool:
        """Count the classes of one sample.

        Args:
            classes: class ids ``(H, W)``, 255 = ignore; or a class index.
            num_classes: number of classes.

        Returns:
            Whether the sample has any label.
        """
        if not len(self.images):
            self.pixels, self.images = np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64)
        if isinstance(classes, int):
            self.images[classes] += 1
            return True
        counts = np.bincount(classes.ravel(), minlength=ignore_id(num_classes) + 1)
        self.pixels += counts[:num_classes]
        self.images += counts[:num_classes] > 0
        self.ignored += int(counts[ignore_id(num_classes)])
        return bool(counts[:num_classes].any())


@dataclass
class DataReport:
    """The result of :func:`check_data`.

    Attributes:
        root: folder of the data set.
        layout: name of the layout; empty if none fits.
        labels: names and palette of the classes.
        splits: one report for each split.
        problems: what is wrong in which file. Training replaces samples that cannot be read by others, up to the share
            that its setting ``max_bad`` allows; others, such as a file without its partner, end it at the start.
        notes: what is allowed but may be a mistake.
    """

    root: Path
    layout: str = ""
    labels: Labels = field(default_factory=Labels)
    splits: list[SplitReport] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that can be trained on data of this layout."""
        return tasks_of(self.layout)

    @property
    def bad_files(self) -> list[str]:
        """Files with problems, relative to the data set, each once, as ``exclude`` in dataset.yaml takes them."""
        files = (p.file for p in self.problems if p.file != self.root and self.root in p.file.parents)
        return list(dict.fromkeys(file.relative_to(self.root).as_posix() for file in files))

    def to_dict(self) -> dict:
        """The report as data for JSON."""
        return {
            "root": str(self.root),
            "layout": self.layout,
            "tasks": list(self.tasks),
            "classes": list(self.labels.names),
            "splits": {split.name: self._split_dict(split) for split in self.splits},
            "problems": [{"file": str(p.file), "error": p.error} for p in self.problems],
            "notes": self.notes,
        }

    def _split_dict(self, split: SplitReport) -> dict:
        result: dict = {
            "items": split.items,
            "readable": split.readable,
            "sizes": [{"size": list(size), "images": n} for size, n in split.sizes.most_common()],
        }
        if len(split.images):
            rows = zip(self.labels.names, split.shares.tolist(), split.images.tolist(), strict=True)
            has_pixels = bool(split.pixels.any())
            result["classes"] = {
                name: {"pixels": round(share, 6), "images": n} if has_pixels else {"images": n}
                for name, share, n in rows
            }
        if split.ignored:
            result["ignored"] = round(split.ignored_share, 6)
        if split.objects:
            result["objects"] = split.objects
        return result
