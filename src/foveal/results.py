"""What predictors return: plain numpy at the image's own size, with the pictures and files one wants next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    """Argmax over classes of the bilinearly upsampled logits, computed only where it can change.

    An upsampled value is a convex combination of four corners. Where all four have one winner, it wins everywhere
    between them. Where two classes together dominate all others at every corner, the sign of their difference decides.
    Only the few cells that are left interpolate every class.
    """
    coarse = logits.argmax(0).astype(np.uint8 if len(logits) <= 256 else np.int32)
    y0, y1, wy = _positions(size[0], logits.shape[1], scale[0])
    x0, x1, wx = _positions(size[1], logits.shape[2], scale[1])
    mask = coarse[:, x0][y0]
    duels = _duels(logits, coarse)
    starts = np.flatnonzero(np.r_[True, np.diff(y0) > 0])
    for start, stop in zip(starts, np.r_[starts[1:], size[0]], strict=True):
        cell, weight = duels.cell[y0[start], x0], wy[start:stop, None]
        columns = np.flatnonzero(cell >= 0)
        if len(columns):
            found = cell[columns]
            upper, step = _between(list(duels.lead[:, found]), wx[columns])
            first_wins = upper + weight * step >= 0
            mask[start:stop, columns] = np.where(first_wins, duels.first[found], duels.second[found])
        columns = np.flatnonzero(cell <= _CROWDED)
        if len(columns):
            rivals = np.flatnonzero(duels.rivals[:, _CROWDED - cell[columns]].any(1))
            corners = [logits[rivals, y[start]][:, x[columns]] for y in (y0, y1) for x in (x0, x1)]
            upper, step = _between(corners, wx[columns])
            mask[start:stop, columns] = rivals[_argmax_first(upper, step, weight)]
    return mask


_UNIFORM, _CROWDED = -1, -2


@dataclass(frozen=True)
class _Duels:
    """Who can win in the cells between four coarse positions.

    Attributes:
        cell: ``(h, w)``: from 0 up the duel of two classes that a cell is, _UNIFORM where one class wins, from _CROWDED
            down the crowd that it is.
        first: class that wins at the upper left corner, ``(n,)``.
        second: the other one, ``(n,)``.
        lead: the first's logit minus the second's at the corners, ``(4, n)``: upper left, upper right, lower ...
        rivals: which classes may win in each crowd, ``(C, m)``.
    """

    cell: NDArray[np.int32]
    first: NDArray[np.integer]
    second: NDArray[np.integer]
    lead: NDArray[np.floating]
    rivals: NDArray[np.bool_]


def _duels(logits: NDArray[np.floating], coarse: NDArray[np.integer]) -> _Duels:
    right = np.minimum(np.arange(coarse.shape[1]) + 1, coarse.shape[1] - 1)
    below = np.minimum(np.arange(coarse.shape[0]) + 1, coarse.shape[0] - 1)
    across = coarse == coarse[:, right]
    rows, columns = np.nonzero(~(across & across[below] & (coarse == coarse[below])))
    corners = np.stack([logits[:, y, x] for y in (rows, below[rows]) for x in (columns, right[columns])])  # (4, C, n)
    winners = [coarse[y, x] for y in (rows, below[rows]) for x in (columns, right[columns])]
    first = winners[0]
    second = np.where(winners[1] != first, winners[1], np.where(winners[2] != first, winners[2], winners[3]))
    each = np.arange(len(rows))
    ours, theirs = corners[:, first, each], corners[:, second, each]  # (4, n)
    by_ours, by_theirs = np.all(corners <= ours[:, None], axis=0), np.all(corners <= theirs[:, None], axis=0)
    dominated = np.logical_or(by_ours, by_theirs)  # (C, n)
    two = np.all(dominated, axis=0)
    cell = np.full(coarse.shape, _UNIFORM, np.int32)
    cell[rows, columns] = np.where(two, np.cumsum(two) - 1, _CROWDED + 1 - np.cumsum(~two))
    rivals = ~dominated[:, ~two]
    crowd = np.arange(rivals.shape[1])
    rivals[first[~two], crowd] = rivals[second[~two], crowd] = True
    return _Duels(cell, first[two], second[two], (ours - theirs)[:, two], rivals)


def _between(
    corners: Sequence[NDArray[np.floating]], weight: NDArray[np.floating]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Interpolate across: the upper edge's values, and what must be added to them to reach the lower edge's."""
    upper_left, upper_right, lower_left, lower_right = corners
    upper = upper_left + weight * (upper_right - upper_left)
    return upper, lower_left + weight * (lower_right - lower_left) - upper


def _argmax_first(
    upper: NDArray[np.floating], step: NDArray[np.floating], weights: NDArray[np.floating]
) -> NDArray[np.int32]:
    """Argmax over C of ``upper + weights * step`` with ``(C, n)``, ``(C, n)``, ``(rows, 1)``: ``(rows, n)``."""
    best = upper[0] + weights * step[0]
    winner = np.zeros(best.shape, np.int32)
    for index in range(1, len(upper)):
        value = upper[index] + weights * step[index]
        np.copyto(winner, index, where=value > best)
        np.maximum(best, value, out=best)
    return winner
