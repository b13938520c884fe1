"""Augmentation for training. All random values come from one seeded generator; Pillow resamples.

Each augmentation applies the same geometric change to an image and to its mask or partner.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from ..images.bands import resized
from .degradation import degraded
from .warping import change_mask


@dataclass(frozen=True)
class SegmentAugment:
    """Random scale, crop, flip and colour of an (image, mask) pair.

    Attributes:
        crop: (H, W) of the result.
        scale: range of the scale factor, drawn log-uniformly.
        flip: probability of a horizontal flip.
        jitter: largest relative change of brightness, contrast and saturation.
        tint: largest relative change of each colour channel.
        rare_crop: probability that the crop must contain a pixel of a class, which is drawn with ``class_weights``.
        class_weights: one weight per class, used by ``rare_crop``.
        fill: colour of pixels outside the image, one value per channel; there the mask is 255 (ignored).
    """

    crop: tuple[int, int]
    scale: tuple[float, float] = (0.6, 1.8)
    flip: float = 0.5
    jitter: float = 0.3
    tint: float = 0.0
    rare_crop: float = 0.0
    class_weights: tuple[float, ...] = ()
    fill: tuple[float, ...] = (124, 116, 104)

    def __call__(
        self, image: NDArray[Any], mask: NDArray[Any], rng: np.random.Generator
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Augment a pair: ``(H, W, C), (H, W) -> (h, w, C), (h, w)`` with (h, w) = ``crop``.

        A mask of K layers, ``(H, W, K)``, gives ``(h, w, K)``; its first layer has the classes.
        """
        height, width = self.crop
        scale = float(np.exp(rng.uniform(*np.log(self.scale))))
        top, left = self.corner(mask if mask.ndim == 2 else mask[..., 0], height / scale, width / scale, rng)
        box = (left, top, left + width / scale, top + height / scale)
        picture = crop_resize(image, box, (width, height), Image.Resampling.BICUBIC, self.fill)
        nearest = Image.Resampling.NEAREST
        target = change_mask(mask, lambda layers, outside: crop_resize(layers, box, (width, height), nearest, outside))
        out = recoloured(picture, self.jitter, self.tint, rng)
        if rng.random() < self.flip:
            out, target = out[:, ::-1], target[:, ::-1]
        return np.ascontiguousarray(out), np.ascontiguousarray(target)

    def corner(self, mask: NDArray[Any], height: float, width: float, rng: np.random.Generator) -> tuple:
        """Draw the top left corner (y, x) of a crop of ``height`` x ``width`` source pixels."""
        free_y, free_x = mask.shape[0] - height, mask.shape[1] - width
        low_y, low_x = min(0.0, free_y), min(0.0, free_x)
        high_y, high_x = max(0.0, free_y), max(0.0, free_x)
        if self.rare_crop and rng.random() < self.rare_crop:
            counts = np.bincount(mask.ravel(), minlength=len(self.class_weights))[: len(self.class_weights)]
            weights = np.where(counts > 0, self.class_weights, 0.0)
            if weights.sum() > 0:
                drawn = rng.choice(len(weights), p=weights / weights.sum())
                y, x = divmod(int(rng.choice(np.flatnonzero(mask == drawn))), mask.shape[1])
                low_y, high_y = max(low_y, min(y - height, high_y)), min(high_y, max(y, low_y))
                low_x, high_x = max(low_x, min(x - width, high_x)), min(high_x, max(x, low_x))
        return float(rng.uniform(low_y, high_y)), float(rng.uniform(low_x, high_x))


@dataclass(frozen=True)
class ClassifyAugment:
    """Crop of random area and aspect ratio, resized; random flip and colour (arXiv 1409.4842, section 6).

    Attributes:
        crop: (H, W) of the result.
        area: range of the crop's area, relative to that of the image.
        flip: probability of a horizontal flip.
        jitter: largest relative change of brightness, contrast and saturation.
        tint: largest relative change of each colour channel.
    """

    crop: tuple[int, int]
    area: tuple[float, float] = (0.25, 1.0)
    flip: float = 0.5
    jitter: float = 0.3
    tint: float = 0.0

    def __call__(self, image: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
        """Augment an image: ``(H, W, C) -> (h, w, C)`` with (h, w) = ``crop``."""
        area = rng.uniform(*self.area) * image.shape[0] * image.shape[1]
        aspect = float(np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3))))
        height = min(image.shape[0], max(1.0, float(np.sqrt(area / aspect))))
        width = min(image.shape[1], max(1.0, float(np.sqrt(area * aspect))))
        top, left = rng.uniform(0, image.shape[0] - height), rng.uniform(0, image.shape[1] - width)
        box = (left, top, left + width, top + height)
        picture = resized(image, (self.crop[1], self.crop[0]), Image.Resampling.BICUBIC, box)
        out = recoloured(picture, self.jitter, self.tint, rng)
        return np.ascontiguousarray(out[:, ::-1] if rng.random() < self.flip else out)


def recoloured(image: NDArray[Any], jitter: float, tint: float, rng: np.random.Generator) -> NDArray[Any]:
    """Change the colours of an RGB image at random; images of other bands have no colours and stay as they are.

    Args:
        image: ``(H, W, C)``.
        jitter: largest relative change of brightness, contrast and saturation.
        tint: largest relative change of each colour channel.
        rng: random generator for the draws.

    Returns:
        The same shape and type.
    """
    if image.dtype != np.uint8 or image.shape[2] != 3:
        return image
    picture = Image.fromarray(image)
    if jitter:
        for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            picture = kind(picture).enhance(float(rng.uniform(1 - jitter, 1 + jitter)))
    if tint:
        r, g, b = rng.uniform(1 - tint, 1 + tint, 3)
        picture = picture.convert("RGB", (r, 0, 0, 0, 0, g, 0, 0, 0, 0, b, 0))
    return np.asarray(picture)


def crop_resize(
    image: NDArray[Any],
    box: tuple[float, float, float, float],
    size: tuple[int, int],
    kernel: Image.Resampling,
    fill: tuple[float, ...],
) -> NDArray[Any]:
    """Crop ``box`` of ``image`` and resize it to ``size`` (W, H); pixels outside the image are ``fill``."""
    left, top, right, bottom = box
    inside = (max(left, 0.0), max(top, 0.0), min(right, float(image.shape[1])), min(bottom, float(image.shape[0])))
    if inside == box:
        return resized(image, size, kernel, box)
    scale_x, scale_y = size[0] / (right - left), size[1] / (bottom - top)
    x0, y0 = round((inside[0] - left) * scale_x), round((inside[1] - top) * scale_y)
    x1, y1 = round((inside[2] - left) * scale_x), round((inside[3] - top) * scale_y)
    canvas = np.empty((size[1], size[0], image.shape[2]), image.dtype)
    canvas[...] = fill
    if x1 > x0 and y1 > y0:
        canvas[y0:y1, x0:x1] = resized(image, (x1 - x0, y1 - y0), kernel, inside)
    return canvas


@dataclass(frozen=True)
class UpscaleAugment:
    """The same random crop of a small and a large image, with random flips and rotations by 90 degrees.

    Attributes:
        crop: (H, W) of the large crop, divisible by ``scale``.
        scale: side of the large image divided by that of the small one.
        flip: probability of each flip: horizontal, vertical, diagonal.
        degradation: ranges of :func:`~foveal.data.degradation.degraded`; if there are any, it computes the small crop
            from the large one.
    """

    crop: tuple[int, int]
    scale: int
    flip: float = 0.5
    degradation: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __call__(
        self, small: NDArray[np.uint8], large: NDArray[np.uint8], rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Augment ``(h, w, 3)`` and ``(scale * h, scale * w, 3)``; images below the crop size are mirrored."""
        height, width = (side // self.scale for side in self.crop)
        padding = [(0, max(0, size - side)) for size, side in zip((height, width), small.shape[:2], strict=True)]
        if any(after for _, after in padding):
            small = np.pad(small, [*padding, (0, 0)], mode="symmetric")
            large = np.pad(large, [*((0, after * self.scale) for _, after in padding), (0, 0)], mode="symmetric")
        top, left = (
            int(rng.integers(side - size + 1)) for side, size in zip(small.shape, (height, width), strict=False)
        )
        parts = [
            image[top * scale : (top + height) * scale, left * scale : (left + width) * scale]
            for image, scale in ((small, 1), (large, self.scale))
        ]
        horizontal, vertical, diagonal = rng.random(3) < self.flip
        if horizontal:
            parts = [part[:, ::-1] for part in parts]
        if vertical:
            parts = [part[::-1] for part in parts]
        if diagonal and height == width:
            parts = [part.swapaxes(0, 1) for part in parts]
        if self.degradation:
            parts[0] = degraded(parts[1], self.scale, self.degradation, rng)
        return parts[0], parts[1]
