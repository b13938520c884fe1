"""Draw class maps over images: colours, contours of the regions, and a legend below."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from ..errors import InputError
from ..info import Labels
from .colours import drawable, palette_of

Entry = tuple[str, tuple[int, int, int]]  # name and colour of a class
_INK, _PAPER = (20, 20, 20), (255, 255, 255)
_BAND = 16  # rows that are mixed at a time: few enough for the cache
_MIN_FONT_SIZE = 10  # in pixels; smaller text cannot be read


def draw_overlay(
    image: NDArray[np.uint8],
    classes: NDArray[np.integer],
    labels: Labels,
    *,
    alpha: float = 0.5,
    contours: bool = False,
    legend: bool = False,
) -> Image.Image:
    """Draw a class map over its image.

    Args:
        image: ``(H, W, 3)`` uint8.
        classes: class index of every pixel, ``(H, W)``.
        labels: names and palette of the classes; without a palette, distinct colours are used.
        alpha: share of the class colour in each pixel, from 0 (image only) to 1 (colours only).
        contours: draw a light line with a dark border between regions of different classes, so that regions can be
            told apart even where their colours are alike.
        legend: add a strip below the image with the name and the colour of every class that occurs, largest first.

    Returns:
        An RGB image of the size of ``image``; with a legend it is higher, and wider if a name needs it.

    Raises:
        InputError: ``alpha`` is not from 0 to 1.
    """
    palette = palette_of(labels, len(labels.names))
    picture = Image.fromarray(blend(image, classes, palette, alpha))
    if contours:
        picture = draw_contours(picture, classes)
    return add_legend(picture, legend_entries(classes, labels.names, palette)) if legend else picture


def blend(
    image: NDArray[np.uint8], classes: NDArray[np.integer], palette: ArrayLike, alpha: float
) -> NDArray[np.uint8]:
    """Mix an image with the colours of its classes: ``image * (1 - alpha) + colour * alpha``, rounded.

    Args:
        image: ``(H, W, 3)`` uint8.
        classes: index into ``palette`` of every pixel, ``(H, W)``.
        palette: colours, ``(N, 3)``.
        alpha: share of the colour, 0 to 1.

    Raises:
        InputError: ``alpha`` is not from 0 to 1.
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha={alpha}: give 0 (image only) to 1 (colours only)")
    colours = np.asarray(palette, np.float32)
    mixed = (np.arange(256)[:, None] * (1 - alpha) + colours[:, None] * alpha + 0.5).astype(np.uint8)  # (N, 256, 3)
    out = np.empty_like(image)
    for top in range(0, len(image), _BAND):
        rows = slice(top, top + _BAND)
        first = classes[rows].astype(np.intp) * 256
        for channel in range(3):
            out[rows, :, channel] = mixed[..., channel].ravel()[first + image[rows, :, channel]]
    return out


def draw_contours(picture: Image.Image, classes: NDArray[np.integer]) -> Image.Image:
    """Draw a white line with a black border along the boundaries between classes.

    The two tones make the line visible on light and on dark regions. Its width grows with the image: 1 pixel between
    borders of 1 pixel up to a diagonal of about 1500 pixels. The border of the image itself is not a boundary.

    Args:
        picture: RGB.
        classes: class index of every pixel, ``(H, W)``.

    Returns:
        A new image of the same size.
    """
    boundary = np.zeros(classes.shape, bool)
    boundary[:, :-1] |= classes[:, :-1] != classes[:, 1:]
    boundary[:-1] |= classes[:-1] != classes[1:]
    width = _line_width(picture.size)
    line = Image.fromarray(boundary.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(2 * (width // 2) + 1))
    out = picture.copy()
    out.paste((0, 0, 0), mask=line.filter(ImageFilter.MaxFilter(2 * width + 1)))
    out.paste((255, 255, 255), mask=line)
    return out


def legend_entries(
    classes: NDArray[np.integer], names: Sequence[str], palette: Sequence[tuple[int, int, int]]
) -> list[Entry]:
    """Name and colour of every class that occurs in a class map, the class with the most pixels first."""
    counts = np.bincount(classes.ravel(), minlength=len(names))
    order = np.argsort(-counts, kind="stable").tolist()
    return [(names[i], palette[i]) for i in map(int, order) if counts[i]]


def add_legend(picture: Image.Image, entries: Sequence[Entry]) -> Image.Image:
    """Add a strip below an image with a colour patch and a name for each class.

    The text size suits the image: about 1/45 of the square root of its area, but at least 10 pixels. The entries stand
    in columns of equal width, row after row; the strip is wider than the image only if one entry does not fit.

    Args:
        picture: RGB.
        entries: name and colour of each class, in the order of the legend.
    """
    if not entries:
        return picture.copy()
    size = max(_MIN_FONT_SIZE, round((picture.width * picture.height) ** 0.5 / 45))
    font = ImageFont.load_default(size)
    texts = [drawable(name) for name, _ in entries]
    gap, row_height = size // 2, round(1.6 * size)
    column_width = size + gap + max(int(font.getlength(text)) for text in texts) + 3 * gap
    columns = min(len(entries), max(1, (picture.width - gap) // column_width))
    rows = -(-len(entries) // columns)
    width = max(picture.width, gap + columns * column_width)
    out = Image.new("RGB", (width, picture.height + rows * row_height + gap), _PAPER)
    out.paste(picture, (0, 0))
    pen = ImageDraw.Draw(out)
    for number, (text, (_, colour)) in enumerate(zip(texts, entries, strict=True)):
        row, column = divmod(number, columns)
        left, top = 2 * gap + column * column_width, picture.height + gap // 2 + row * row_height
        middle = top + row_height // 2
        patch = (left, middle - size // 2, left + size, middle + size // 2)
        pen.rectangle(patch, fill=colour, outline=_INK, width=max(1, size // 16))
        pen.text((left + size + gap, middle), text, fill=_INK, font=font, anchor="lm")
    return out


def draw_name(picture: Image.Image, name: str) -> Image.Image:
    """Write a name into the upper left corner of an image, on a patch; what does not fit is cut off.

    Args:
        picture: RGB.
        name: on one line.
    """
    font = ImageFont.load_default(max(_MIN_FONT_SIZE, picture.height // 24))
    text = drawable(name)
    left, top, right, bottom = font.getbbox(text)
    edge = max(2, round(bottom - top) // 3)
    out = picture.copy()
    pen = ImageDraw.Draw(out)
    pen.rectangle((0, 0, right - left + 2 * edge, bottom - top + 2 * edge), fill=_PAPER)
    pen.text((edge - left, edge - top), text, fill=_INK, font=font)
    return out


def _line_width(size: tuple[int, int]) -> int:
    """Width in pixels of the white line, and of its border on either side, for an image of this (W, H)."""
    return max(1, round((size[0] ** 2 + size[1] ** 2) ** 0.5 / 1000))
