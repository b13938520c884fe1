"""A few random samples of a data set as thumbnails."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..images.bands import displayed
from ..images.colours import colour_table
from ..images.overlay import blend
from ..info import Labels, ignore_id

CELL = (240, 180)  # largest (W, H) of a thumbnail, in pixels
COLUMNS = 4  # thumbnails in a row of the overview
_ALPHA = 0.5


@dataclass
class Examples:
    """A random choice from a sequence of samples of unknown length, each with the same probability.

    Reservoir sampling: Vitter, "Random sampling with a reservoir", 1985, algorithm R.

    Attributes:
        most: number of samples to choose.
        offered: number of samples offered so far.
        chosen: number, title and thumbnail of each chosen sample.
        rng: random generator for the choice.
    """

    most: int = 2 * COLUMNS
    offered: int = 0
    chosen: list[tuple[int, str, Image.Image]] = field(default_factory=list)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def offer(self, title: str, image: NDArray[Any], target: NDArray[np.uint8] | int | None, labels: Labels) -> None:
        """Offer a sample, which may replace one that was chosen before.

        Args:
            title: printed below the thumbnail, after the name of the class if the target is a class index.
            image: ``(H, W, C)``; of other bands than RGB the first three are drawn, or the first.
            target: class ids ``(H, W)``, drawn over the image except for 255 = ignore; or a class index; or ``None``.
            labels: names and palette.
        """
        self.offered += 1
        place = len(self.chosen) if len(self.chosen) < self.most else int(self.rng.integers(self.offered))
        if place >= self.most:
            return
        if isinstance(target, int):
            title = f"{labels.names[target] if labels.names else target}: {title}"
        entry = (self.offered, title, _thumbnail(image, target, labels))
        self.chosen[place : place + 1] = [entry]


def _thumbnail(image: NDArray[Any], target: NDArray[np.uint8] | int | None, labels: Labels) -> Image.Image:
    scale = min(CELL[0] / image.shape[1], CELL[1] / image.shape[0], 1.0)
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = Image.fromarray(displayed(image)).resize(size, Image.Resampling.BOX)
    if not isinstance(target, np.ndarray):
        return small
    ids = np.asarray(Image.fromarray(target).resize(size, Image.Resampling.NEAREST))
    pixels, count = np.asarray(small), len(labels.names)
    ignored = ids == ignore_id(count)
    drawn = blend(pixels, np.where(ignored, 0, ids), colour_table(labels)[: max(1, count)], _ALPHA)
    return Image.fromarray(np.where(ignored[..., None], pixels, drawn))
