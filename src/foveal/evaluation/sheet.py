"""A picture of example images with their labels and predictions, for visual inspection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..images.bands import displayed
from ..images.colours import colour_table, drawable
from ..images.writing import stack_below
from ..info import Labels, ignore_id

_MAX_WIDTH = 640  # pixels; wider images are downscaled
_LINE, _GAP = 18, 4
_INK, _PAPER = (20, 20, 20), (255, 255, 255)


@dataclass(frozen=True)
class Sample:
    """One example, a row of the sheet.

    Attributes:
        title: text above the row.
        image: ``(H, W, C)``; of other bands than RGB the first three are drawn, or the first.
        target: class ids ``(H, W)``; ignored pixels (255, or 65535 with more than 255 classes) are black.
        predicted: class ids ``(H, W)``.
    """

    title: str
    image: NDArray[Any]
    target: NDArray[np.uint8]
    predicted: NDArray[np.integer]


def sample_sheet(samples: Sequence[Sample], labels: Labels) -> Image.Image:
    """Draw image, label and prediction of each sample side by side, one sample per row; wide images are downscaled."""
    colours = colour_table(labels)
    return stack_below([_row(sample, colours, len(labels.names)) for sample in samples], _PAPER)


def _row(sample: Sample, colours: NDArray[np.uint8], count: int) -> Image.Image:
    height, width = sample.target.shape
    ignored = sample.target == ignore_id(count)
    truth = colours[np.where(ignored, 0, sample.target)]
    truth[ignored] = 0
    drawn_width = min(width, _MAX_WIDTH)
    size = (drawn_width, max(1, round(height * drawn_width / width)))
    pictures = (
        ("image", Image.fromarray(displayed(sample.image)).resize(size, Image.Resampling.BOX)),
        ("truth", Image.fromarray(truth).resize(size, Image.Resampling.NEAREST)),
        ("prediction", Image.fromarray(colours[sample.predicted]).resize(size, Image.Resampling.NEAREST)),
    )
    row = Image.new("RGB", (3 * drawn_width + 2 * _GAP, size[1] + 2 * _LINE + _GAP), _PAPER)
    pen = ImageDraw.Draw(row)
    pen.text((2, 2), drawable(sample.title), fill=_INK)
    for column, (name, picture) in enumerate(pictures):
        left = column * (drawn_width + _GAP)
        pen.text((left + 2, _LINE + 2), name, fill=_INK)
        row.paste(picture, (left, 2 * _LINE))
    return row
