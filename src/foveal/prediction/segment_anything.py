"""The interface of the package ``segment_anything``, for programs that were written for it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, InputError, nearest
from ..images.sam_frame import FRAME, at_image_size, frame_size
from .everything import EverythingOptions
from .load import load
from .mask_results import MaskResult, Record
from .predictor import Predictor
from .prompting import Embedding, decoder_prompts
from .sam_transform import ResizeLongestSide
from .torch_runner import TorchPrompter

if TYPE_CHECKING:
    import torch
    from torch import nn


class SamPredictor:
    """Masks of one image at a time, which :meth:`set_image` sets; :meth:`foveal.Predictor.encode` keeps no state.

    ``features``, ``original_size``, ``input_size`` and ``is_image_set`` can be assigned: programs that keep embeddings
    of several images put one back in this way.

    Args:
        model: a predictor, a reference for :func:`foveal.load`, or a promptable torch model.

    Attributes:
        predictor: the predictor behind it.
        transform: brings images, points and boxes to the frame of 1024 pixels that :meth:`predict_torch` uses.
        original_size: (H, W) of the image, ``None`` without one.

    Raises:
        ConfigError: a model that is not promptable.
    """

    def __init__(self, model: Predictor | str | os.PathLike[str] | nn.Module) -> None:
        self.predictor = _open_predictor(model)
        self.transform = ResizeLongestSide(FRAME)
        self.reset_image()

    @property
    def model(self) -> Any:
        """The torch model; for other runtimes a :class:`SamModel`, which has what programs read of the model."""
        runner = self.predictor.prompter()
        return runner.model if isinstance(runner, TorchPrompter) else SamModel()

    @property
    def is_image_set(self) -> bool:
        """Whether there is an image: its features and its size."""
        return self._features is not None and self.original_size is not None

    @is_image_set.setter
    def is_image_set(self, value: bool) -> None:
        if not value:
            self.reset_image()

    @property
    def device(self) -> torch.device:
        """Device of the tensors that :meth:`predict_torch` returns: always the CPU, whatever the model runs on."""
        import torch

        return torch.device("cpu")

    @property
    def features(self) -> torch.Tensor | None:
        """Embedding of the image, ``(1, 256, 64, 64)``; ``None`` without one."""
        import torch

        return None if self._features is None else torch.from_numpy(self._features)

    @features.setter
    def features(self, value: torch.Tensor | NDArray[Any] | None) -> None:
        import torch

        if value is not None:
            value = torch.as_tensor(value).detach().float().cpu().numpy()
            if value.shape != (1, 256, 64, 64):
                raise InputError(f"features {value.shape}: give an embedding of this model, (1, 256, 64, 64)")
        self._features = value

    @property
    def input_size(self) -> tuple[int, int] | None:
        """(H, W) of the image in the frame, ``None`` without an image; it follows from ``original_size``."""
        return self._input_size or (None if self.original_size is None else frame_size(self.original_size))

    @input_size.setter
    def input_size(self, value: tuple[int, int] | None) -> None:
        self._input_size = value if value is None else (int(value[0]), int(value[1]))

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
        self._set(self.predictor.encode(pixels).features, pixels.shape[:2])

    def set_torch_image(self, transformed_image: torch.Tensor, original_image_size: tuple[int, int]) -> None:
        """Encode an image that is already resized; later calls are about it.

        Args:
            transformed_image: ``(1, 3, H, W)`` RGB of 0..255 with a long side of 1024, as :attr:`transform` makes it.
                A long side equal to the encoder's input size is accepted, too.
            original_image_size: (H, W) of the original image; masks have this size.

        Raises:
            InputError: a wrong shape.
        """
        from ..tasks.prompt import encoder_input

        preprocess, shape = self.predictor.info.preprocess, tuple(transformed_image.shape)
        if len(shape) != 4 or shape[:2] != (1, 3) or max(shape[2:]) not in (FRAME, *(preprocess.size or ())):
            raise InputError(f"transformed_image {shape}: expected (1, 3, H, W) with a long side of {FRAME}")
        batch = encoder_input(transformed_image.detach().cpu(), preprocess).numpy()
        self._set(self.predictor.prompter()(batch), original_image_size)

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
        self._features: NDArray[np.float32] | None = None
        self.original_size: tuple[int, int] | None = None
        self._input_size: tuple[int, int] | None = None

    def _set(self, features: NDArray[np.float32], size: Sequence[int]) -> None:
        self.reset_image()
        self._features, self.original_size = features, (int(size[0]), int(size[1]))

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
        height, width = frame_size(self._current().size)
        outside = ~((points >= 0) & (points <= (width, height))).all(-1)  # NaN, too
        if outside.any():
            x, y = points[outside][0]
            raise InputError(
                f"{name}: {x:g},{y:g} is outside of the image, which is {width}x{height} where transform has brought it"
            )

    def _current(self) -> Embedding:
        if self._features is None or self.original_size is None:
            raise RuntimeError("no image is set: call set_image(image) first")
        size = (int(self.original_size[0]), int(self.original_size[1]))
        if self._input_size not in (None, frame_size(size)):
            sides = f"{frame_size(size)}, where the long side is {FRAME}"
            raise InputError(f"input_size {self._input_size}: for an image of (H, W) = {size} it is {sides}")
        return Embedding(self._features, size, self.predictor.info.ref, self.predictor.prompter())


class SamImageEncoder:
    """What programs for SAM read of an image encoder that is not a torch module."""

    img_size = FRAME


class SamModel:
    """What programs for SAM read of a model that is not a torch module.

    Attributes:
        mask_threshold: masks are where the logits are above it.
        image_format: order of the channels.
        image_encoder: has ``img_size``, the side of the frame.
    """

    mask_threshold = 0.0
    image_format = "RGB"
    image_encoder = SamImageEncoder()

    @property
    def device(self) -> torch.device:
        """The CPU: what programs exchange with this model are arrays and tensors there."""
        import torch

        return torch.device("cpu")


class SamAutomaticMaskGenerator:
    """Masks of all objects in an image, see :meth:`foveal.Predictor.everything`.

    All options are attributes, which can be assigned.

    Args:
        model: a predictor, a reference for :func:`foveal.load`, or a promptable torch model.
        points_per_side: points along each side of the grid of prompts; ``None``: use ``point_grids``.
        *more: further options by position, in SAM's order, which is that of :class:`foveal.EverythingOptions`.
        **options: fields of :class:`foveal.EverythingOptions`, with SAM's names and defaults.

    Attributes:
        predictor: a :class:`SamPredictor` of the model.

    Raises:
        ConfigError: a model that is not promptable, an unknown option, an option that is given twice, or a value out
            of range.
    """

    def __init__(
        self,
        model: Predictor | str | os.PathLike[str] | nn.Module,
        points_per_side: int | None = 32,
        *more: Any,
        **options: Any,
    ) -> None:
        names = [field.name for field in fields(EverythingOptions)]
        by_position = dict(zip(names, (points_per_side, *more), strict=False))
        if len(more) >= len(names) or by_position.keys() & options.keys():
            raise ConfigError(f"options by position: give {', '.join(names)} in this order, each once")
        vars(self).update(vars(EverythingOptions.of(by_position | options)))
        self.predictor = SamPredictor(model)

    @property
    def options(self) -> dict[str, Any]:
        """The options by name."""
        return {field.name: getattr(self, field.name) for field in fields(EverythingOptions)}

    def generate(self, image: NDArray[np.uint8]) -> list[Record]:
        """Records of all masks, highest predicted IoU first; ``image`` is ``(H, W, 3)`` uint8 RGB."""
        return self.predictor.predictor.everything(image, **self.options).records


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
