"""Random scale, crop, flip and colour of an image with a map of values, whose values follow the geometry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .transforms import SegmentAugment, crop_resize, recoloured

_WHOLE = 0.5  # share of valid pixels under a resampled one from which it is valid


@dataclass(frozen=True)
class MapAugment(SegmentAugment):
    """The geometric and colour changes of :class:`~foveal.data.transforms.SegmentAugment` for maps of values.

    Depths are resampled to the nearest pixel, since a mean over an edge is the depth of nothing; other values
    bilinearly, over valid pixels alone. Where an image is enlarged by s, its depths are divided by s: the same camera
    would be nearer (Eigen et al., arXiv 1406.2283, section 3.4). In a mirror image, normals point to the other side.

    Attributes:
        kind: kind of the values, one of :data:`foveal.info.TARGET_KINDS`.
    """

    kind: str = "values"

    def __call__(
        self, image: NDArray[Any], mask: NDArray[Any], rng: np.random.Generator
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Augment ``(H, W, C)`` and values ``(H, W, channels)``, NaN where not valid, to (h, w) = ``crop``."""
        height, width = self.crop
        scale = float(np.exp(rng.uniform(*np.log(self.scale))))
        top, left = self.corner(mask[..., 0], height / scale, width / scale, rng)
        box = (left, top, left + width / scale, top + height / scale)
        picture = crop_resize(image, box, (width, height), Image.Resampling.BICUBIC, self.fill)
        values = self._resampled(mask, box)
        if self.kind == "depth":
            values = values / np.float32(scale)
        out = recoloured(picture, self.jitter, self.tint, rng)
        if rng.random() < self.flip:
            out, values = out[:, ::-1], values[:, ::-1]
            if self.kind == "normals":
                values = values * np.array([-1, 1, 1], np.float32)
        return np.ascontiguousarray(out), np.ascontiguousarray(values, np.float32)

    def _resampled(self, values: NDArray[np.float32], box: tuple[float, float, float, float]) -> NDArray[np.float32]:
        """Resample the box of a map with the weights of its valid pixels."""
        valid = np.isfinite(values).all(2, keepdims=True)
        stacked = np.concatenate([np.where(valid, values, 0), valid], axis=2, dtype=np.float32)
        kernel = Image.Resampling.NEAREST if self.kind == "depth" else Image.Resampling.BILINEAR
        size = (self.crop[1], self.crop[0])
        found = crop_resize(stacked, box, size, kernel, (0.0,) * stacked.shape[2])
        weight = found[..., -1:]
        values = np.where(weight >= _WHOLE, found[..., :-1] / np.maximum(weight, _WHOLE), np.nan)
        if self.kind == "normals":
            values = values / np.maximum(np.linalg.norm(values, axis=2, keepdims=True), 1e-6)
        return values
