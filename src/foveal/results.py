"""What predictors return: plain numpy at the image's own size, with the pictures and files one wants next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import InputError
from .files import written_whole
from .info import Labels
from .pictures import Canvas, distinct_colours, write_picture


@dataclass(frozen=True)
class SegmentResult:
    """Semantic segmentation of one image.

    Attributes:
        image: the image, ``(H, W, 3)`` uint8.
        logits: class scores at the network's stride, ``(C, h, w)`` float32.
        scale: logit positions per image pixel, (vertical, horizontal): position = (pixel + 0.5) * scale - 0.5.
        labels: names and palette.
    """

    image: NDArray[np.uint8]
    logits: NDArray[np.float32]
    scale: tuple[float, float]
    labels: Labels

    @property
    def names(self) -> tuple[str, ...]:
        """Class names by index; "class 0", ... where the model has none."""
        return self.labels.names or tuple(f"class {i}" for i in range(len(self.logits)))

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        return self.labels.palette or distinct_colours(len(self.logits))

    @cached_property
    def mask(self) -> NDArray[np.uint8]:
        """Class index of every pixel, ``(H, W)`` uint8 (int32 for more than 256 classes).

        The argmax of the bilinearly upsampled logits, computed only where it can change.
        """
        return _upsampled_argmax(self.logits, self.image.shape[:2], self.scale)

    @cached_property
    def scores(self) -> NDArray[np.float32]:
        """Probability of the chosen class at every pixel, ``(H, W)`` float32: softmax of the upsampled logits."""
        out = np.empty(self.image.shape[:2], np.float32)
        for rows, logits in _upsampled_rows(self.logits, self.image.shape[:2], self.scale):
            out[rows] = 1 / np.exp(logits - logits.max(0)).sum(0)
        return out

    def shares(self) -> list[tuple[str, float, float]]:
        """(class name, share of the pixels, mean confidence there) of every class that occurs, largest first."""
        count = np.bincount(self.mask.ravel(), minlength=len(self.names))
        total = np.bincount(self.mask.ravel(), weights=self.scores.ravel(), minlength=len(self.names))
        order = [i for i in np.argsort(-count, kind="stable") if count[i]]
        return [(self.names[i], float(count[i] / self.mask.size), float(total[i] / count[i])) for i in order]

    def overlay(self, alpha: float = 0.5) -> Image.Image:
        """The image with the classes' colours over it; ``alpha`` is the share of the colour, 0..1."""
        if not 0 <= alpha <= 1:
            raise InputError(f"alpha={alpha}: give 0 (image only) to 1 (colours only)")
        colours = np.asarray(self.palette, np.float32)[self.mask]
        return Image.fromarray((self.image * (1 - alpha) + colours * alpha + 0.5).astype(np.uint8))

    def save(self, path: str | Path) -> Path:
        """Write the index mask as a PNG with the palette inside: viewers show colours, readers get indices.

        Raises:
            InputError: another suffix, more than 256 classes, or the file cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise InputError(f"{path}: class indices survive in .png files only")
        if self.mask.dtype != np.uint8:
            raise InputError(f"{path}: a PNG with a palette holds 256 classes, these are {len(self.names)}")
        picture = Image.fromarray(self.mask)
        picture.putpalette(np.asarray(self.palette, np.uint8).ravel().tolist())
        save_picture(picture, path)
        return path


@dataclass(frozen=True)
class ClassifyResult:
    """Classification of one image.

    Attributes:
        logits: ``(num_classes,)`` float32.
        labels: names of the classes.
    """

    logits: NDArray[np.float32]
    labels: Labels

    @cached_property
    def scores(self) -> NDArray[np.float32]:
        """Probabilities, ``(num_classes,)``."""
        shifted = np.exp(self.logits - self.logits.max())
        return shifted / shifted.sum()

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The ``k`` most probable (name, probability), best first; unnamed classes are "class 0", ..."""
        order = np.argsort(-self.scores, kind="stable")[:k]
        return [(self.labels.names[i] if self.labels.names else f"class {i}", float(self.scores[i])) for i in order]


@dataclass(frozen=True)
class UpscaleResult:
    """An image made larger, or repaired at its own size.

    Attributes:
        image: ``(scale * H, scale * W, 3)``, with alpha 4 channels; uint8, or uint16 where 16 bits went in.
        scale: its sides over those of the image that went in.
        icc: colour profile, empty where there is none.
        grey: whether the image is grey; its three channels are equal then.
    """

    image: NDArray[Any]
    scale: int
    icc: bytes = b""
    grey: bool = False

    def save(self, path: str | Path) -> Path:
        """Write the image with its colour profile; the suffix tells the format.

        Raises:
            InputError: a format that is not written or cannot hold it, or the file cannot be written.
        """
        stored = stored_channels(self.image, self.grey)
        height, width, channels = stored.shape
        canvas = Canvas(height, width, channels, 8 * self.image.itemsize, self.icc)
        write_picture(path, canvas, [stored])
        return Path(path)


def stored_channels(pixels: NDArray[Any], grey: bool) -> NDArray[Any]:
    """``(H, W, 3 or 4)`` as files have it: a single channel of grey, and alpha where there is one."""
    return pixels[..., [0, *range(3, pixels.shape[2])]] if grey else pixels


def save_picture(picture: Image.Image, path: str | Path) -> None:
    """Write a Pillow image, whole or not at all; the suffix tells the format.

    Raises:
        InputError: unknown suffix, or the file cannot be written.
    """
    check_picture_name(path)
    with written_whole(path) as temporary:
        picture.save(temporary)


def check_picture_name(path: str | Path) -> None:
    """Raise :class:`InputError` where the suffix tells no format of pictures."""
    suffix = Path(path).suffix
    if suffix.lower() not in Image.registered_extensions():
        raise InputError(f"{path}: unknown picture format {suffix!r}; use .png or .jpg")


@dataclass(frozen=True)
class _Axis:
    """One axis of bilinear upsampling: intervals between coarse positions and the pixels in them (half-pixel centres).

    Attributes:
        ends: coarse positions around each interval that holds pixels, ``(2, n)``: lower and upper, the same one twice
            outside the first and the last position.
        first: first pixel in each interval, ``(n,)``.
        count: number of pixels in it, ``(n,)``.
        weight: the upper end's, for each pixel, ``(length,)``.
    """

    ends: NDArray[np.intp]
    first: NDArray[np.intp]
    count: NDArray[np.intp]
    weight: NDArray[np.float32]

    @classmethod
    def between(cls, coarse: int, length: int, scale: float) -> _Axis:
        """Place ``length`` pixels on ``coarse`` positions: position = (pixel + 0.5) * scale - 0.5."""
        position = np.clip((np.arange(length) + 0.5) * scale - 0.5, -0.5, coarse - 0.5)
        below = np.floor(position).astype(np.intp)
        lower, first, count = np.unique(below, return_index=True, return_counts=True)
        ends = np.stack([lower, lower + 1]).clip(0, coarse - 1)
        return cls(ends, first, count, (position - below).astype(np.float32))


def _upsampled_rows(
    logits: NDArray[np.floating], size: tuple[int, int], scale: tuple[float, float]
) -> Iterator[tuple[slice, NDArray[np.floating]]]:
    """Bilinear upsampling in bands of pixel rows between the same coarse rows: ``(rows, (C, rows, W))``."""
    ys, xs = (_Axis.between(*axis) for axis in zip(logits.shape[1:], size, scale, strict=True))
    left, right = xs.ends.repeat(xs.count, axis=1)
    for (above, below), first, count in zip(ys.ends.T, ys.first, ys.count, strict=True):
        rows = slice(first, first + count)
        upper, lower = logits[:, above], logits[:, below]
        upper = upper[:, left] + xs.weight * (upper[:, right] - upper[:, left])
        lower = lower[:, left] + xs.weight * (lower[:, right] - lower[:, left])
        yield rows, upper[:, None] + ys.weight[rows, None] * (lower - upper)[:, None]


_PIXELS_AT_ONCE = 1 << 16  # few enough for the cache, many enough that numpy's own work per call is small


def _upsampled_argmax(
    logits: NDArray[np.floating], size: tuple[int, int], scale: tuple[float, float]
) -> NDArray[np.uint8]:
    """Argmax over classes of the bilinearly upsampled logits, computed only where it can change.

    An upsampled value is a convex combination of four corners, so where all four have one winner, it wins everywhere
    in the cell between them. The other cells are decided pixel by pixel, among the few classes that can win there.
    """
    coarse = _argmax(logits)
    ys, xs = (_Axis.between(*axis) for axis in zip(logits.shape[1:], size, scale, strict=True))
    corners = (ys.ends[:, None, :, None] * coarse.shape[1] + xs.ends[:, None]).reshape(4, len(ys.first), len(xs.first))
    winners = coarse.take(corners)
    mask = winners[0].repeat(xs.count, axis=1).repeat(ys.count, axis=0)
    y, x = np.nonzero((winners[1:] != winners[0]).any(0))
    values = logits.reshape(len(logits), -1).take(corners[:, y, x], axis=1).swapaxes(0, 1)  # (4, C, n)
    contends = _contenders(values, winners[:, y, x])
    count, rivals = contends.sum(0), np.nonzero(contends.T)[1]
    begin = np.cumsum(count) - count
    order = np.argsort(count, kind="stable")  # cells with as many rivals together
    tallest, widest = np.arange(ys.count.max())[:, None], np.arange(xs.count.max())[:, None]
    step = max(1, _PIXELS_AT_ONCE // (len(tallest) * len(widest)))
    for start in range(0, len(order), step):
        cells = order[start : start + step]
        # All cells as large as the largest: the smaller ones decide their last pixels several times, alike.
        rows = ys.first[y[cells]] + np.minimum(tallest, ys.count[y[cells]] - 1)  # (tallest, n)
        columns = xs.first[x[cells]] + np.minimum(widest, xs.count[x[cells]] - 1)  # (widest, n)
        most = np.arange(count[cells[-1]])[:, None]
        classes = rivals[begin[cells] + np.minimum(most, count[cells] - 1)]  # (most, n)
        mask.reshape(-1)[rows[:, None] * size[1] + columns] = _argmax_between(
            values[:, classes, cells], classes.astype(mask.dtype), ys.weight[rows], xs.weight[columns]
        )
    return mask


def _argmax(logits: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Argmax over the first dimension, the first of equals; several times as fast as numpy's own along it."""
    best = logits[0].copy()
    winner: NDArray[Any] = np.zeros(best.shape, np.uint8 if len(logits) <= 256 else np.int32)
    for index in range(1, len(logits)):
        np.copyto(winner, index, where=logits[index] > best)
        np.maximum(best, logits[index], out=best)
    return winner


def _contenders(values: NDArray[np.floating], winners: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Which classes may win somewhere in ``n`` cells, ``(C, n)``.

    A class cannot win where another one is at least as good at all four corners: two of the winners are tried.

    Args:
        values: logits at the corners, ``(4, C, n)``.
        winners: classes that win at the corners, ``(4, n)``, not all the same.
    """
    cells = np.arange(values.shape[2])
    tried = np.stack([winners.min(0), winners.max(0)])
    contends = np.ones(values.shape[1:], bool)
    for winner in tried:
        contends &= (values > values[:, None, winner, cells]).any(0)
    contends[tried, cells] = True
    return contends


def _argmax_between(
    values: NDArray[np.floating], classes: NDArray[np.integer], wy: NDArray[np.floating], wx: NDArray[np.floating]
) -> NDArray[np.integer]:
    """Decide ``n`` cells pixel by pixel.

    Args:
        values: logits at upper left, upper right, lower left and lower right, ``(4, m, n)``.
        classes: which classes they are of, ``(m, n)``.
        wy: weights of the lower corners, ``(h, n)``.
        wx: weights of the right corners, ``(w, n)``.

    Returns:
        The winning classes, ``(h, w, n)``.
    """
    lead = (values[:, 1:] - values[:, :1])[:, :, None]  # over the first class, (4, m - 1, 1, n)
    upper = lead[0] + wx * (lead[1] - lead[0])
    step = lead[2] + wx * (lead[3] - lead[2]) - upper  # to the lower edge, (m - 1, w, n)
    winner, best = classes[0], np.zeros((), wx.dtype)
    for rival, start, by in zip(classes[1:], upper, step, strict=True):
        ahead = wy[:, None] * by
        ahead += start
        winner = winner + (ahead > best) * (rival - winner)  # np.where takes thrice as long; unsigned wraps back
        best = np.maximum(best, ahead)
    return winner
