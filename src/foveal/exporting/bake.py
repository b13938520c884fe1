"""Networks that take images as they are decoded and give results: resizing, normalisation and argmax are inside.

Resizing is that of Pillow, with its rounding to 8 bits after each axis: products with matrices of weights, which every
runtime has. Distances are whole numbers until they are divided, so that the weights of large images are exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..info import ModelInfo
from ..task import TASKS
from .graph import Feed, Graph, Source


def _triangle(x: Tensor) -> Tensor:
    return (1 - x).clamp(min=0)


def _cubic(x: Tensor) -> Tensor:
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


#: Kernels of resizes by Pillow's name, for distances from 0 up.
_KERNELS: dict[str, Callable[[Tensor], Tensor]] = {"bilinear": _triangle, "bicubic": _cubic}


def bake(graph: Graph, source: Source) -> Graph:
    """The graph of a network that takes images of 8 bits, ``(B, H, W, C)``, and gives results.

    Results are classes ``(B, H, W)`` of uint8 (int32 for more than 256 classes), probabilities ``(B, num_classes)``, or
    images ``(B, scale * H, scale * W, 3)`` of uint8.

    Args:
        graph: of the network that takes prepared images.
        source: the model; with a fixed size, images are resized to it, except those to be upscaled.

    Raises:
        ConfigError: as :func:`check_bakes`.
    """
    info = source.info
    check_bakes(info)
    prepare, task = info.preprocess, TASKS[info.task]
    size = prepare.size or (source.size if source.limits.fixed and task.has_classes else None)
    free = not source.limits.fixed or task.has_classes
    batch, (height, width) = source.limits.batch or 1, source.size
    kinds = {"segment": ("classes", "height", "width"), "classify": ("probabilities",)}
    scale = f"*{info.options['scale']}" if "scale" in info.options else ""
    name, *sides = kinds.get(info.task, (task.output_name, f"height{scale}", f"width{scale}"))
    return replace(
        graph,
        network=BakedNetwork(graph.network, info, size),
        reference=BakedNetwork(graph.reference, info, size),
        example=(torch.zeros(batch, height, width, info.in_chans, dtype=torch.uint8),),
        inputs={"image": ("", "height", "width") if free else ()},
        outputs={name: ("", *sides) if free else ()},
        feeds=_feeds(info.in_chans, source.size, batch, free),
        notes=(_larger(info.preprocess.max_side),) if size is None and info.preprocess.max_side else (),
    )


def check_bakes(info: ModelInfo) -> None:
    """Refuse models whose images a graph cannot prepare.

    Raises:
        ConfigError: another task, images of other types than uint8, or a resize that only Foveal does.
    """
    if info.task not in _FINISHES:
        raise ConfigError(f"bake: {info.model} is for {info.task!r}; give a model for {', '.join(_FINISHES)}")
    prepare = info.preprocess
    if prepare.dtype != "uint8" or prepare.pad or prepare.resample.lower() not in _KERNELS:
        raise ConfigError(
            f"bake: {info.model} takes images of {prepare.dtype}, resized by {prepare.resample}; graphs have "
            f"{' and '.join(_KERNELS)} resizes of uint8 without padding: leave bake out"
        )


def _larger(max_side: int) -> str:
    return f"images with a side above {max_side} pixels are taken as they are, where the predictor shrinks them"


class BakedNetwork(nn.Module):
    """A network between the steps that turn an image into its input and its output into a result.

    Args:
        network: takes prepared images; gives logits at ``info.output_stride``, or images.
        info: description of the model.
        size: (H, W) of the network's input; ``None``: that of the image.
    """

    gain: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, info: ModelInfo, size: tuple[int, int] | None) -> None:
        super().__init__()
        self.network, self.size, self.finish = network, size, _FINISHES[info.task]
        self.prepare, self.stride = info.preprocess, info.output_stride
        gain = [1 / (self.prepare.peak * std) for std in self.prepare.std]
        shift = [mean / std for mean, std in zip(self.prepare.mean, self.prepare.std, strict=True)]
        for name, values in (("gain", gain), ("shift", shift)):
            self.register_buffer(name, torch.tensor(values).reshape(1, -1, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        pixels = image.permute(0, 3, 1, 2).float()
        if self.size is not None:
            pixels = self._resized(pixels, *self.size)
        return self.finish(self, self.network(pixels * self.gain - self.shift), image)

    def _resized(self, pixels: Tensor, height: int, width: int) -> Tensor:
        """Resize as :func:`foveal.images.preparing.prepare` does, one axis after the other, and crop the centre."""
        sides = [torch.ones(side, dtype=torch.int64).sum() for side in pixels.shape[-2:]]  # tensors, not symbols
        if self.prepare.crop_ratio > 0:
            lengths = self._lengths_before_crop(sides, (height, width))
        else:
            lengths = [torch.tensor(side) for side in (height, width)]
        rows, columns = (
            _weights(self.prepare.resample.lower(), side, length, kept, count)
            for side, length, kept, count in zip(sides, lengths, (height, width), pixels.shape[-2:], strict=True)
        )
        return _rounded(rows @ _rounded(pixels @ columns.T))

    def _lengths_before_crop(self, sides: list[Tensor], size: tuple[int, int]) -> list[Tensor]:
        """Height and width of the image before the centre is cropped."""
        if self.prepare.squash:
            lengths = [torch.tensor(math.floor(side / self.prepare.crop_ratio)) for side in size]
        else:
            short, least = math.ceil(min(size) / self.prepare.crop_ratio), torch.minimum(*sides)
            lengths = [short * side // least for side in sides]
        return [length.clamp(min=kept) for length, kept in zip(lengths, size, strict=True)]


def _weights(filter: str, side: Tensor, length: Tensor, kept: int, count: int) -> Tensor:
    """Matrix ``(kept, count)`` that resizes one axis from ``side`` to ``length`` pixels and keeps the middle ones.

    Args:
        filter: key of :data:`_KERNELS`.
        side: as a tensor, the same number as ``count``.
        length: as a tensor.
        kept: rows of the matrix.
        count: its columns.
    """
    rest = length - kept
    first = rest // 2 + rest % 2 * (rest // 2 % 2)  # half of the rest, halves to even, as Python rounds
    output = 2 * (torch.arange(kept) + first) + 1
    distance = (2 * torch.arange(count) + 1) * length - (output * side)[:, None]  # in halves of a pixel, times length
    weights = _KERNELS[filter](distance.abs().float() / (2 * torch.maximum(side, length)).float())
    return weights / weights.sum(1, keepdim=True)


def _rounded(pixels: Tensor) -> Tensor:
    return (pixels + 0.5).floor().clamp(0, 255)


def _classes(self: BakedNetwork, logits: Tensor, image: Tensor) -> Tensor:
    """Argmax of the logits, upsampled bilinearly to the size of the image as the predictor does."""
    inputs = image.shape[1:3] if self.size is None else self.size
    for axis, (side, length) in enumerate(zip(image.shape[1:3], inputs, strict=True), start=2):
        # Positions between logits as fractions, one higher than they are, since quotients of integers round to zero.
        denominator = 2 * side * self.stride
        numerator = (2 * torch.arange(side) + 1) * length + side * self.stride
        upper = numerator // denominator
        weight = (numerator - upper * denominator).float() / denominator
        last = logits.shape[axis] - 1
        before, after = (logits.index_select(axis, index.clamp(0, last)) for index in (upper - 1, upper))
        logits = before + weight.reshape(-1, *[1] * (3 - axis)) * (after - before)
    return logits.argmax(1).to(torch.uint8 if logits.shape[1] <= 256 else torch.int32)


def _probabilities(self: BakedNetwork, logits: Tensor, image: Tensor) -> Tensor:
    return logits.softmax(1)


def _image(self: BakedNetwork, output: Tensor, image: Tensor) -> Tensor:
    return (output * 255).round().clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8)


#: How the output of a network becomes a result, by task. Models of other tasks have no baked files.
_FINISHES: dict[str, Callable[[BakedNetwork, Tensor, Tensor], Tensor]] = {
    "segment": _classes,
    "classify": _probabilities,
    "upscale": _image,
}


def _feeds(in_chans: int, size: tuple[int, int], batch: int, free: bool) -> tuple[Feed, ...]:
    """Images of the traced size and, where it is free, of an odd one, and small."""
    rng = np.random.default_rng(0)
    shapes = [size, *([(size[0] // 2 + 5, size[1] + 13), (33, 64)] if free else [])]
    return tuple({"image": rng.integers(0, 256, (batch, *shape, in_chans), dtype=np.uint8)} for shape in shapes)
