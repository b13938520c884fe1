"""The interface of the package ``segment_anything``, for programs that were written for it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import ConfigError, InputError, nearest
from ..images.preparing import long_side_size
from ..images.sam_frame import FRAME, at_image_size, frame_size
from .everything import EverythingOptions
from .load import load
from .mask_results import MaskResult, Record
from .predictor import Predictor
from .prompting import Embedding, decoder_prompts
from .torch_runner import TorchPrompter

if TYPE_CHECKING:
    import torch
    from torch import nn


class SamPredictor:
    """Masks of one image at a time, which :meth:`set_image` sets; :meth:`foveal.Predictor.encode` keeps no state.

    Args:
        model: a predictor, a reference for :func:`foveal.load`, or a promptable torch model.

    Attributes:
        transform: brings images, points and boxes to the frame of 1024 pixels that :meth:`predict_torch` uses.

    Raises:
        ConfigError: a model that is not promptable.
    """

    def __init__(self, model: Predictor | str | os.PathLike[str] | nn.Module) -> None:
        self.predictor = _open_predictor(model)
        self.transform = ResizeLongestSide(FRAME)
        self._embedding: Embedding | None = None

    @property
    def is_image_set(self) -> bool:
        """Whether there is an image."""
        return self._embedding is not None

    @property
    def device(self) -> torch.device:
        """Device of the tensors that :meth:`predict_torch` returns: always the CPU, whatever the model runs on."""
        import torch

        return torch.device("cpu")

    @property
    def features(self) -> torch.Tensor:
        """The same as :meth:`get_image_embedding`."""
        return self.get_image_embedding()

    @property
    def original_size(self) -> tuple[int, int]:
        """(H, W) of the image."""
        return self._current().size

    @property
    def input_size(self) -> tuple[int, int]:
        """(H, W) of the image in the frame."""
        return frame_size(self._current().size)

    def set_image(self, image: NDArray[np.uint8], image_format: Literal["RGB", "BGR"] = "RGB") -> None:
        """Encode an image; later calls are about it.

        Args:
            image: ``(H, W, 3)`` uint8.
            image_format: order of its channels.

        Raises:
            InputError: an unknown order, or an array that is not an image.
        """
        if image_format not in ("RGB", "BGR"):
            raise InputError(f"image_format {image_format!r}{nearest(str(image_format), ('RGB', 'BGR'))}")
        pixels = np.asarray(image)
        if pixels.ndim != 3 or pixels.shape[2] != 3:
            raise InputError(f"array of shape {pixels.shape}: expected (H, W, 3)")
        if image_format == "BGR":
            pixels = np.ascontiguousarray(pixels[..., ::-1])
        self._embedding = self.predictor.encode(pixels)

    def set_torch_image(self, transformed_image: torch.Tensor, original_image_size: tuple[int, int]) -> None:
        """Encode an image that is already resized; later calls are about it.

        Args:
            transformed_image: ``(1, 3, H, W)`` RGB of 0..255 with a long side of 1024, as :attr:`transform` makes it.
                A long side equal to the encoder's input size is accepted, too.
            original_image_size: (H, W) of the original image; masks have this size.

        Raises:
            InputError: a wrong shape.
        """
        preprocess = self.predictor.info.preprocess
        assert preprocess.size is not None  # promptable models have a fixed input size
        side = max(preprocess.size)
        shape = tuple(transformed_image.shape)
        if len(shape) != 4 or shape[:2] != (1, 3) or max(shape[2:]) not in (side, FRAME):
            raise InputError(f"transformed_image {shape}: expected (1, 3, H, W) with a long side of {FRAME}")
        size = (int(original_image_size[0]), int(original_image_size[1]))
        image = transformed_image.detach().float().cpu()
        if max(shape[2:]) != side:
            image = ResizeLongestSide(side).apply_image_torch(image)
            shape = tuple(image.shape)
        pixels = image.numpy() / 255
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (preprocess.mean, preprocess.std))
        padded = np.zeros((1, 3, side, side), np.float32)
        padded[..., : shape[2], : shape[3]] = (pixels - mean) / std
        runner = self.predictor.prompter()
        self._embedding = Embedding(runner(padded), size, self.predictor.info.ref, runner)

    def predict(
        self,
        point_coords: NDArray[Any] | None = None,
        point_labels: NDArray[Any] | None = None,
        box: NDArray[Any] | None = None,
        mask_input: NDArray[Any] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float32]]:
        """Predict the masks of one object.

        Args:
            point_coords: ``(N, 2)`` x and y in pixels.
            point_labels: ``(N,)`` 1 on the object, 0 on the background.
            box: ``(4,)`` x1, y1, x2, y2 in pixels.
            mask_input: ``(1, 256, 256)`` logits of an earlier prediction.
            multimask_output: three masks, else one.
            return_logits: return masks as logits, without the threshold of 0.

        Returns:
            Masks ``(C, H, W)`` bool, predicted IoU ``(C,)``, and logits ``(C, 256, 256)``.

        Raises:
            RuntimeError: no image is set.
            InputError: as for :meth:`Embedding.prompt`.
        """
        box = None if box is None else np.asarray(box)
        if box is not None and box.size != 4:
            raise InputError(f"box {box.shape}: give x1, y1, x2, y2 of one; predict_torch takes more")
        result = self._current().prompt(
            point_coords, point_labels, None if box is None else box.reshape(4), _single(mask_input), multimask_output
        )
        return result.logits if return_logits else result.masks, result.iou, result.low_res[0]

    def predict_torch(
        self,
        point_coords: torch.Tensor | None,
        point_labels: torch.Tensor | None,
        boxes: torch.Tensor | None = None,
        mask_input: torch.Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Predict the masks of B objects, with prompts that :attr:`transform` has brought to the frame.

        Args:
            point_coords: ``(B, N, 2)`` x and y.
            point_labels: ``(B, N)`` 1 on the object, 0 on the background, -1 for no point.
            boxes: ``(B, 4)`` x1, y1, x2, y2.
            mask_input: ``(B, 1, 256, 256)`` logits of an earlier prediction.
            multimask_output: three masks, else one.
            return_logits: return masks as logits, without the threshold of 0.

        Returns:
            Masks ``(B, C, H, W)`` bool, predicted IoU ``(B, C)``, and logits ``(B, C, 256, 256)``, on the CPU.

        Raises:
            RuntimeError: no image is set.
            InputError: no prompt, shapes that do not fit each other, or a prompt outside the image.
        """
        import torch

        embedding = self._current()
        point_coords, point_labels, boxes, mask_input = (
            None if x is None else torch.as_tensor(x) for x in (point_coords, point_labels, boxes, mask_input)
        )
        count = _count_prompts(point_coords, point_labels, boxes, mask_input)
        points = labels = corners = masks = None
        if point_coords is not None and point_labels is not None:
            points, labels = self._frame_points(point_coords, point_labels)
        if boxes is not None:
            corners = self._frame_corners(boxes, count)
        if mask_input is not None:
            masks = mask_input.detach().float().cpu().numpy()
            if masks.shape != (count, 1, 256, 256):
                raise InputError(f"mask_input {masks.shape}: give (B, 1, 256, 256)")
        low_res, iou = embedding.decode(*decoder_prompts(count, points, corners, labels), masks, multimask_output)
        if return_logits:
            outputs = at_image_size(low_res, embedding.size)
        else:
            outputs = MaskResult(low_res, iou, embedding.size).masks
        return torch.from_numpy(outputs), torch.from_numpy(iou), torch.from_numpy(low_res)

    def get_image_embedding(self) -> torch.Tensor:
        """Embedding of the image, ``(1, 256, 64, 64)``.

        Raises:
            RuntimeError: no image is set.
        """
        import torch

        return torch.from_numpy(self._current().features)

    def reset_image(self) -> None:
        """Remove the image."""
        self._embedding = None

    def _frame_points(
        self, coords: torch.Tensor, point_labels: torch.Tensor
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Checked points ``(B, N, 2)`` in the frame and their labels ``(B, N)``."""
        points, labels = coords.detach().float().cpu().numpy(), point_labels.detach().cpu().numpy()
        if labels.ndim != 2 or points.shape != (*labels.shape, 2):
            raise InputError(f"point_coords {points.shape} and point_labels {labels.shape}: give (B, N, 2) and (B, N)")
        if not np.isin(labels, (-1, 0, 1)).all():
            raise InputError("point_labels: give 1 on the object, 0 on the background, -1 for no point")
        self._check_inside(points[labels >= 0], "point_coords")
        return points, labels.astype(np.int64)

    def _frame_corners(self, boxes: torch.Tensor, count: int) -> NDArray[np.float32]:
        """Corners ``(B, 2, 2)`` of checked boxes in the frame."""
        if boxes.numel() != 4 * count:
            raise InputError(f"boxes {tuple(boxes.shape)}: give (B, 4)")
        corners = boxes.detach().float().cpu().numpy().reshape(count, 2, 2)
        if not (corners[:, 0] < corners[:, 1]).all():
            raise InputError("boxes: give the left top corner, then the right bottom one (x1, y1, x2, y2)")
        self._check_inside(corners.mean(1), "boxes")
        return corners

    def _check_inside(self, points: NDArray[np.floating], name: str) -> None:
        height, width = self.input_size
        outside = ~((points >= 0) & (points <= (width, height))).all(-1)  # NaN, too
        if outside.any():
            x, y = points[outside][0]
            raise InputError(
                f"{name}: {x:g},{y:g} is outside of the image, which is {width}x{height} where transform has brought it"
            )

    def _current(self) -> Embedding:
        if self._embedding is None:
            raise RuntimeError("no image is set: call set_image(image) first")
        return self._embedding


class SamAutomaticMaskGenerator:
    """Masks of all objects in an image, see :meth:`foveal.Predictor.everything`.

    Args:
        model: a predictor, a reference for :func:`foveal.load`, or a promptable torch model.
        points_per_side: points along each side of the grid of prompts; ``None``: use ``point_grids``.
        **options: fields of :class:`foveal.EverythingOptions`, with SAM's names and defaults.

    Raises:
        ConfigError: a model that is not promptable, an unknown option, or a value out of range.
    """

    def __init__(
        self,
        model: Predictor | str | os.PathLike[str] | nn.Module,
        points_per_side: int | None = 32,
        **options: Any,
    ) -> None:
        options["points_per_side"] = points_per_side
        EverythingOptions.of(options)
        self.predictor, self.options = _open_predictor(model), options

    def generate(self, image: NDArray[np.uint8]) -> list[Record]:
        """Records of all masks, highest predicted IoU first; ``image`` is ``(H, W, 3)`` uint8 RGB."""
        return self.predictor.everything(image, **self.options).records


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


def _count_prompts(
    point_coords: torch.Tensor | None,
    point_labels: torch.Tensor | None,
    boxes: torch.Tensor | None,
    mask_input: torch.Tensor | None,
) -> int:
    """Number of objects that the prompts are for."""
    if (point_coords is None) != (point_labels is None):
        raise InputError("point_coords and point_labels go together: one label for each point")
    counts = {len(x) for x in (point_coords, point_labels, boxes, mask_input) if x is not None}
    if not counts:
        raise InputError("no prompt: give point_coords with point_labels, boxes, or mask_input")
    if len(counts) > 1:
        raise InputError(f"prompts for {', '.join(map(str, sorted(counts)))} objects: give as many of each")
    (count,) = counts
    if not count:
        raise InputError("no objects: the prompts are empty")
    return count


def _open_predictor(model: Predictor | str | os.PathLike[str] | nn.Module) -> Predictor:
    if isinstance(model, str | os.PathLike):
        model = load(model)
    if not isinstance(model, Predictor):
        from ..info import info_of
        from ..tasks.prompt import PromptModel

        if not isinstance(model, PromptModel):
            raise ConfigError(
                f"a {type(model).__name__} takes no prompts: give a promptable model, or a reference to one"
            )
        weight = next(model.parameters())
        runner = TorchPrompter(model, str(weight.device), weight.dtype)
        model = Predictor(runner, info_of(model), f"torch on {weight.device}")
    model.prompter()
    return model


def _single(mask_input: NDArray[Any] | None) -> NDArray[Any] | None:
    """Mask logits of one prompt without the leading dimension, ``(256, 256)``."""
    if mask_input is None:
        return None
    mask_input = np.asarray(mask_input)
    return mask_input[0] if mask_input.ndim == 3 and len(mask_input) == 1 else mask_input
