"""Crops of the bundled photograph as the inputs that a file of float16 is compared on.

Linear attention sometimes has a query without a clearly positive feature. Its output is then a quotient of two
roundings, which float16 decides in another way, and all maps behind it change. With the published EfficientViT-B0 for
Cityscapes, the logits of one crop in 30 of 256x320 pixels differ by more than 0.01 of the largest for that reason, and
those of one in six of 33x64; half of them differ by less than 0.005. Noise has more such queries than photographs. So
there are several crops, whose median counts: a file that is wrong is so on all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .. import assets
from ..info import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from .graph import Graph

Box: TypeAlias = tuple[float, float, float, float]  #: left, top, right, bottom of a crop, as shares of the sides
#: The whole photograph and its corners.
_BOXES: tuple[Box, ...] = (
    (0, 0, 1, 1),
    (0, 0, 0.6, 0.6),
    (0.4, 0, 1, 0.6),
    (0, 0.4, 0.6, 1),
    (0.4, 0.4, 1, 1),
)


def on_photograph(graph: Graph) -> Graph:
    """The same network with crops of the photograph in place of each image; embeddings and prompts stay."""
    if not any(feed.keys() & _LAYOUTS for feed in graph.feeds):
        return graph
    prepare = graph.info.preprocess
    feeds = [
        {name: _LAYOUTS[name](value, box, prepare) if name in _LAYOUTS else value for name, value in feed.items()}
        for feed in graph.feeds
        for box in _BOXES
    ]
    return replace(graph, feeds=tuple(feeds), repeats=len(_BOXES))


def _batch(value: NDArray[Any], box: Box, prepare: Preprocess) -> NDArray[Any]:
    """Images ``(N, C, H, W)``, normalised, or those of 8 bits ``(N, H, W, C)``; every second one is mirrored."""
    number, *shape = value.shape
    if value.dtype == np.uint8:
        image = _pixels(box, *shape)
    else:
        channels, height, width = shape
        # Statistics of other images than usual photographs would put the photograph out of the model's range.
        usual = prepare.dtype == "uint8" and channels == len(IMAGENET_MEAN)
        mean, std = (prepare.mean, prepare.std) if usual else (IMAGENET_MEAN, IMAGENET_STD)
        pixels = _pixels(box, height, width, channels).astype(np.float32) / 255
        image = (pixels - np.resize(mean, channels)) / np.resize(std, channels)
    images = np.stack([image[:, :: (-1) ** index] for index in range(number)])
    return np.ascontiguousarray(images if value.dtype == np.uint8 else images.transpose(0, 3, 1, 2), value.dtype)


def _pixels(box: Box, height: int, width: int, channels: int) -> NDArray[np.uint8]:
    """A crop of the photograph with its colours repeated to a number of channels, ``(H, W, C)``."""
    with Image.open(assets.path("street", ".jpg")) as opened:
        left, top, right, bottom = np.multiply(box, 2 * opened.size)
        rgb = np.asarray(opened.convert("RGB").resize((width, height), box=(left, top, right, bottom)))
    return rgb[..., np.arange(channels) % rgb.shape[2]]


#: What takes the place of an input, by its name.
_LAYOUTS: dict[str, Callable[[NDArray[Any], Box, Preprocess], NDArray[Any]]] = {
    "image": _batch,
    "input_image": lambda value, box, _: _pixels(box, *value.shape).astype(value.dtype),
}
