"""What predictors return: plain numpy at the image's own size, with the pictures and files one wants next."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError
from ..images.colours import distinct_colours
from ..images.writing import Canvas, save_picture, stored_channels, write_picture
from ..info import Labels
from .argmax import _upsampled_argmax, _upsampled_rows


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
