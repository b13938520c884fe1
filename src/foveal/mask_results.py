"""What promptable models return: masks at the image's own size, with the pictures and files one wants next."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import InputError
from .imaging import distinct_colours
from .results import save_picture

_FRAME = 1024  # side of the square in which SAM's prompts and masks live


@dataclass(frozen=True)
class MaskResult:
    """Answers to one prompt, or to P of them; each has M masks, 3 for an ambiguous prompt (part, whole, more), else 1.

    Attributes:
        low_res: mask logits as the network gives them, ``(P, M, 256, 256)`` float32; ``prompt(masks=)`` takes them.
        iou: how well each mask fits, as the network expects: ``(M,)``, of P prompts ``(P, M)``.
        size: (H, W) of the image.
        image: the image, ``(H, W, 3)`` uint8; ``None`` where an embedding came out of a file.
    """

    low_res: NDArray[np.float32] = field(repr=False)
    iou: NDArray[np.float32]
    size: tuple[int, int]
    image: NDArray[np.uint8] | None = field(default=None, repr=False)

    @property
    def many(self) -> bool:
        """Whether P prompts were given, not one."""
        return self.iou.ndim == 2

    @cached_property
    def logits(self) -> NDArray[np.float32]:
        """Mask logits at the image's size, ``(M, H, W)``, of P prompts ``(P, M, H, W)``; inside is above 0."""
        found = at_image_size(self.low_res, self.size)
        return found if self.many else found[0]

    @cached_property
    def masks(self) -> NDArray[np.bool_]:
        """``(M, H, W)``, of P prompts ``(P, M, H, W)``."""
        found = np.empty((*self.low_res.shape[:2], *self.size), bool)
        for into, low_res in zip(found, self.low_res, strict=True):  # the logits of all would be four times as large
            np.greater(at_image_size(low_res, self.size), 0, out=into)
        return found if self.many else found[0]

    @cached_property
    def best(self) -> NDArray[np.bool_]:
        """The mask with the highest :attr:`iou`: ``(H, W)``, of P prompts ``(P, H, W)``."""
        choice = self.iou.reshape(len(self.low_res), -1).argmax(1)
        found = np.stack([at_image_size(low[i], self.size) > 0 for low, i in zip(self.low_res, choice, strict=True)])
        return found if self.many else found[0]

    def overlay(self, alpha: float = 0.5) -> Image.Image:
        """The image with the best masks in colours, their outlines and expected IoU."""
        if self.image is None:
            raise InputError("this embedding came out of a file, without its image: lay result.best over the image")
        best = self.best if self.many else self.best[None]
        return draw_masks(self.image, best, self.iou.reshape(len(best), -1).max(1), alpha)

    def save(self, path: str | Path) -> Path:
        """Write the best mask as a PNG: 255 inside; of P prompts the number of the last one that holds the pixel, 1..P.

        Raises:
            InputError: another suffix, more than 255 prompts, or the file cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise InputError(f"{path}: masks survive in .png files only")
        if len(self.low_res) > 255:
            raise InputError(f"{path}: a mask holds 255 objects, these are {len(self.low_res)}")
        numbers = np.zeros(self.size, np.uint8)
        for number, mask in enumerate(self.best if self.many else self.best[None], start=1):
            numbers[mask] = number if self.many else 255
        save_picture(Image.fromarray(numbers), path)
        return path


def draw_masks(
    image: NDArray[np.uint8], masks: NDArray[np.bool_], scores: NDArray[np.floating], alpha: float = 0.5
) -> Image.Image:
    """``(N, H, W)`` masks over an image, each in a colour of its own, with an outline and its score.

    Raises:
        InputError: ``alpha`` is out of 0..1.
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha={alpha}: give 0 (image only) to 1 (colours only)")
    from PIL import ImageDraw, ImageFont

    out = image.copy()
    colours = np.asarray(distinct_colours(len(masks) + 1)[1:], np.float32)
    for mask, colour in zip(masks, colours, strict=True):
        out[mask] = (out[mask] * (1 - alpha) + colour * alpha + 0.5).astype(np.uint8)
        out[_outline(mask, max(1, round(max(image.shape[:2]) / 600)))] = 255
    picture = Image.fromarray(out)
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(max(10, round(max(image.shape[:2]) / 50)))
    for mask, score in zip(masks, scores, strict=True):
        if mask.any():
            rows, columns = np.nonzero(mask)
            at = (float(columns.mean()), float(rows.mean()))
            pen.text(at, f"{score:.2f}", fill="white", stroke_fill="black", stroke_width=2, anchor="mm", font=font)
    return picture


def _outline(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Pixels of the mask within ``width`` of its outside, diagonals apart."""
    inner = mask
    for _ in range(width):
        padded = np.pad(inner, 1, mode="edge")
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def frame_size(size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) of an image in the frame of 1024, where its long side has that length."""
    scale = _FRAME / max(size)
    return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))


def at_image_size(low_res: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.float32]:
    """Bring mask logits ``(..., 256, 256)`` to the image's size, ``(..., H, W)``.

    As SAM does: bilinear to the frame of 1024, cut to the image, bilinear to its size. Both are linear, and one axis
    after the other, so each axis takes one product of matrices.
    """
    height, width = frame_size(size)
    rows = _resampling(low_res.shape[-2], height, size[0])
    columns = _resampling(low_res.shape[-1], width, size[1])
    inside: NDArray[np.float32] = low_res[..., : rows.shape[1], : columns.shape[1]].astype(np.float32)
    return np.matmul(rows @ inside, columns.T)


def _resampling(length: int, inside: int, target: int) -> NDArray[np.float32]:
    """``length`` places to the frame, the first ``inside`` of those to ``target``: ``(target, first places)``."""
    to_frame = _bilinear(length, _FRAME)[:inside]
    used = np.flatnonzero(to_frame.any(0))[-1] + 1
    return (_bilinear(inside, target) @ to_frame[:, :used]).astype(np.float32)


def _bilinear(length: int, target: int) -> NDArray[np.float64]:
    """Matrix ``(target, length)`` of bilinear interpolation between the centres of pixels, held at the borders."""
    # Positions in float32, as torch has them: their rounding is the largest difference to SAM's own masks.
    at = (np.arange(target, dtype=np.float32) + np.float32(0.5)) * np.float32(length / target) - np.float32(0.5)
    at = np.clip(at, 0, length - 1)
    low = np.minimum(at.astype(int), max(0, length - 2))
    weight = (at - low).astype(np.float64)
    out = np.zeros((target, length))
    out[np.arange(target), low] = 1 - weight
    out[np.arange(target), np.minimum(low + 1, length - 1)] += weight
    return out
