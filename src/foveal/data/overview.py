"""Draw a data set as one picture: how often each class occurs, and a few samples with their labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..images.colours import colour_table, drawable
from ..images.writing import stack_below
from ..info import Labels
from .examples import CELL, COLUMNS, Examples

if TYPE_CHECKING:
    from .check import DataReport, SplitReport
_LINE, _GAP = 16, 8  # height of a line of text and space between parts, in pixels
_NAMES, _BAR, _FIGURE = 180, 160, 70  # widths of the histogram's columns: class name, bar and share
_MAX_CLASSES = 60
_INK, _PAPER, _BARS = (20, 20, 20), (255, 255, 255), (90, 120, 170)


def draw_overview(report: DataReport) -> Image.Image:
    """Draw a histogram of the classes, one column per split, and below it the examples of each split."""
    parts = [_line(f"{report.root}: {report.layout or 'no known layout'}, {len(report.problems)} problems")]
    counted = [split for split in report.splits if len(split.images)]
    if counted:
        parts.append(_histogram(counted, report.labels))
    for split in report.splits:
        parts.append(_line(f"{split.name}: {split.readable} of {split.items} samples can be read"))
        parts += [_sheet(split.examples)] if split.examples.chosen else []
    return stack_below(parts, _PAPER)


def _line(text: str) -> Image.Image:
    line = Image.new("RGB", (COLUMNS * (CELL[0] + _GAP) + _GAP, _LINE + _GAP), _PAPER)
    ImageDraw.Draw(line).text((_GAP, _GAP // 2), drawable(text), fill=_INK)
    return line


def _histogram(splits: list[SplitReport], labels: Labels) -> Image.Image:
    """One row per class: its colour and name, then for each split a bar and the share of its pixels or images."""
    shares = [
        split.shares if split.pixels.any() else split.images / max(1, int(split.images.sum())) for split in splits
    ]
    order = _rows(shares[0], len(labels.names))
    width = _GAP + _LINE + _NAMES + len(splits) * (_BAR + _FIGURE)
    picture = Image.new("RGB", (width, (len(order) + 1) * _LINE + _GAP), _PAPER)
    pen = ImageDraw.Draw(picture)
    colours = colour_table(labels)
    longest = max(float(share.max()) for share in shares) or 1.0
    for column, split in enumerate(splits):
        unit = "pixels" if split.pixels.any() else "images"
        pen.text((_GAP + _LINE + _NAMES + column * (_BAR + _FIGURE), 0), drawable(f"{split.name}, {unit}"), fill=_INK)
    for row, index in enumerate(order, start=1):
        top = row * _LINE
        pen.rectangle((_GAP, top + 2, _GAP + _LINE - 6, top + _LINE - 4), fill=tuple(colours[index].tolist()))
        pen.text((_GAP + _LINE, top), drawable(labels.names[index])[:28], fill=_INK)
        for column, share in enumerate(shares):
            left = _GAP + _LINE + _NAMES + column * (_BAR + _FIGURE)
            end = left + round(_BAR * float(share[index]) / longest)
            if share[index]:
                pen.rectangle((left, top + 2, end, top + _LINE - 4), fill=_BARS)
            pen.text((end + 4, top), f"{share[index]:.2%}" if share[index] else "none", fill=_INK)
    return picture


def _rows(shares: NDArray[np.float64], num_classes: int) -> list[int]:
    """The classes to draw: all, or the 30 most frequent and the 30 rarest of more than 60."""
    if num_classes <= _MAX_CLASSES:
        return list(range(num_classes))
    ranked = np.argsort(-shares, kind="stable").tolist()
    return ranked[: _MAX_CLASSES // 2] + ranked[-_MAX_CLASSES // 2 :]


def _sheet(examples: Examples) -> Image.Image:
    rows = -(-len(examples.chosen) // COLUMNS)
    step = (CELL[0] + _GAP, CELL[1] + _LINE + _GAP)
    sheet = Image.new("RGB", (COLUMNS * step[0] + _GAP, rows * step[1]), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, (_, title, picture) in enumerate(sorted(examples.chosen, key=lambda entry: entry[0])):
        left, top = _GAP + number % COLUMNS * step[0], number // COLUMNS * step[1]
        sheet.paste(picture, (left, top))
        pen.text((left, top + CELL[1] + 1), drawable(title)[-38:], fill=_INK)
    return sheet
