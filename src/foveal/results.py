"""What predictors return: plain numpy at the image's own size, with the pictures and files one wants next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import InputError
from .files import written_whole
from .imaging import distinct_colours
from .info import Labels


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
            InputError: more than 256 classes, or the file cannot be written.
        """
        path = Path(path)
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


def save_picture(picture: Image.Image, path: str | Path) -> None:
    """Write a Pillow image, whole or not at all; the suffix tells the format.

    Raises:
        InputError: unknown suffix, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in Image.registered_extensions():
        raise InputError(f"{path}: unknown picture format {path.suffix!r}; use .png or .jpg")
    with written_whole(path) as temporary:
        picture.save(temporary)


def _positions(
    length: int, coarse: int, scale: float
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.floating]]:
    """Lower and upper coarse index and the upper's weight for each of ``length`` pixels (half-pixel centres)."""
    position = np.clip((np.arange(length) + 0.5) * scale - 0.5, 0, coarse - 1)
    lower = position.astype(np.intp)
    return lower, np.minimum(lower + 1, coarse - 1), (position - lower).astype(np.float32)


def _upsampled_rows(
    logits: NDArray[np.floating], size: tuple[int, int], scale: tuple[float, float]
) -> Iterator[tuple[slice, NDArray[np.floating]]]:
    """Bilinear upsampling in bands of pixel rows that share their coarse rows: ``(rows, (C, rows, W))``."""
    y0, y1, wy = _positions(size[0], logits.shape[1], scale[0])
    x0, x1, wx = _positions(size[1], logits.shape[2], scale[1])
    starts = np.flatnonzero(np.r_[True, np.diff(y0) > 0])
    for start, stop in zip(starts, np.r_[starts[1:], size[0]], strict=True):
        upper, lower = logits[:, y0[start]], logits[:, y1[start]]
        upper = upper[:, x0] + wx * (upper[:, x1] - upper[:, x0])
        lower = lower[:, x0] + wx * (lower[:, x1] - lower[:, x0])
        yield slice(start, stop), upper[:, None] + wy[start:stop, None] * (lower - upper)[:, None]


def _upsampled_argmax(
    logits: NDArray[np.floating], size: tuple[int, int], scale: tuple[float, float]
) -> NDArray[np.uint8]:
    """Argmax over classes of the bilinearly upsampled logits.

    An upsampled value is a convex combination of four corners, so where all four have the same winner it wins
    everywhere between them. Only cells with differing corners are interpolated: a tenth of a usual image.
    """
    coarse = logits.argmax(0).astype(np.uint8 if len(logits) <= 256 else np.int32)
    y0, y1, wy = _positions(size[0], logits.shape[1], scale[0])
    x0, x1, wx = _positions(size[1], logits.shape[2], scale[1])
    mask = coarse[:, x0][y0]
    right = np.minimum(np.arange(coarse.shape[1]) + 1, coarse.shape[1] - 1)
    below = np.minimum(np.arange(coarse.shape[0]) + 1, coarse.shape[0] - 1)
    across = coarse == coarse[:, right]
    mixed = ~(across & across[below] & (coarse == coarse[below]))
    starts = np.flatnonzero(np.r_[True, np.diff(y0) > 0])
    for start, stop in zip(starts, np.r_[starts[1:], size[0]], strict=True):
        columns = np.flatnonzero(mixed[y0[start], x0])
        if not len(columns):
            continue
        left, right_, weight = x0[columns], x1[columns], wx[columns]
        upper, lower = logits[:, y0[start]], logits[:, y1[start]]
        upper = upper[:, left] + weight * (upper[:, right_] - upper[:, left])
        step = lower[:, left] + weight * (lower[:, right_] - lower[:, left]) - upper
        mask[start:stop, columns] = _argmax_first(upper, step, wy[start:stop], mask.dtype)
    return mask


def _argmax_first(
    upper: NDArray[np.floating], step: NDArray[np.floating], weights: NDArray[np.floating], dtype: np.dtype
) -> NDArray[np.uint8]:
    """Argmax over C of ``upper + weights * step`` with ``(C, n)``, ``(C, n)``, ``(rows,)``: ``(rows, n)``."""
    best = upper[0] + weights[:, None] * step[0]
    winner = np.zeros(best.shape, dtype)
    for index in range(1, len(upper)):
        value = upper[index] + weights[:, None] * step[index]
        np.copyto(winner, index, where=value > best)
        np.maximum(best, value, out=best)
    return winner
