"""A few random samples of a data set as small pictures."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..images.colours import colour_table
from ..images.overlay import blend
from ..info import IGNORE, Labels

_CELL = (240, 180)  # of a sample, (W, H) in pixels
_COLUMNS = 4
_ALPHA = 0.5


@dataclass
class Examples:
    """A few of the samples that pass by, each with the same chance (reservoir sampling: Vitter 1985, algorithm R).

    Attributes:
        most: how many are kept.
        passed: how many passed by.
        kept: number, title and picture of each.
    """

    most: int = 2 * _COLUMNS
    passed: int = 0
    kept: list[tuple[int, str, Image.Image]] = field(default_factory=list)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def offer(
        self, title: str, image: NDArray[np.uint8], target: NDArray[np.uint8] | int | None, labels: Labels
    ) -> None:
        """Let a sample pass by.

        Args:
            title: printed below it, with the class's name where the target is a class.
            image: ``(H, W, 3)``.
            target: class ids ``(H, W)``, which are drawn over the image but for 255 = ignore; a class; or nothing.
            labels: names and palette.
        """
        self.passed += 1
        place = len(self.kept) if len(self.kept) < self.most else int(self.rng.integers(self.passed))
        if place >= self.most:
            return
        if isinstance(target, int):
            title = f"{labels.names[target] if labels.names else target}: {title}"
        entry = (self.passed, title, _thumbnail(image, target, labels))
        self.kept[place : place + 1] = [entry]


def _thumbnail(image: NDArray[np.uint8], target: NDArray[np.uint8] | int | None, labels: Labels) -> Image.Image:
    scale = min(_CELL[0] / image.shape[1], _CELL[1] / image.shape[0], 1.0)
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = Image.fromarray(image).resize(size, Image.Resampling.BOX)
    if not isinstance(target, np.ndarray):
        return small
    ids = np.asarray(Image.fromarray(target).resize(size, Image.Resampling.NEAREST))
    pixels = np.asarray(small)
    return Image.fromarray(
        np.where((ids == IGNORE)[..., None], pixels, blend(pixels, ids, colour_table(labels), _ALPHA))
    )
