"""The transforms of the package ``segment_anything``: images, points and boxes in the frame of 1024 pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..images.preparing import long_side_size

if TYPE_CHECKING:
    import torch


class ResizeLongestSide:
    """Resize the long side to ``target_length``: images, points and boxes; ``original_size`` is (H, W)."""

    def __init__(self, target_length: int) -> None:
        self.target_length = target_length

    def apply_image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize an image ``(H, W, 3)`` uint8 bilinearly."""
        height, width = self.get_preprocess_shape(image.shape[0], image.shape[1], self.target_length)
        return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))

    def apply_coords(self, coords: NDArray[Any], original_size: tuple[int, int]) -> NDArray[np.float64]:
        """Scale points ``(..., 2)``, x and y."""
        return np.asarray(coords, np.float64) * self._scale(original_size)

    def apply_boxes(self, boxes: NDArray[Any], original_size: tuple[int, int]) -> NDArray[np.float64]:
        """Scale boxes ``(B, 4)``, x1, y1, x2, y2."""
        return self.apply_coords(np.asarray(boxes).reshape(-1, 2, 2), original_size).reshape(-1, 4)

    def apply_image_torch(self, image: torch.Tensor) -> torch.Tensor:
        """Resize images ``(B, 3, H, W)``, floating point, bilinearly with anti-aliasing."""
        import torch.nn.functional as F

        size = self.get_preprocess_shape(image.shape[2], image.shape[3], self.target_length)
        return F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True)

    def apply_coords_torch(self, coords: torch.Tensor, original_size: tuple[int, int]) -> torch.Tensor:
        """Scale points ``(..., 2)``, x and y."""
        import torch

        return coords.float() * torch.from_numpy(self._scale(original_size)).to(coords.device, torch.float32)

    def apply_boxes_torch(self, boxes: torch.Tensor, original_size: tuple[int, int]) -> torch.Tensor:
        """Scale boxes ``(B, 4)``, x1, y1, x2, y2."""
        return self.apply_coords_torch(boxes.reshape(-1, 2, 2), original_size).reshape(-1, 4)

    @staticmethod
    def get_preprocess_shape(oldh: int, oldw: int, long_side_length: int) -> tuple[int, int]:
        """(H, W) after resizing."""
        return long_side_size(oldh, oldw, long_side_length)

    def _scale(self, original_size: tuple[int, int]) -> NDArray[np.float64]:
        height, width = original_size
        new_height, new_width = self.get_preprocess_shape(height, width, self.target_length)
        return np.array([new_width / width, new_height / height])
