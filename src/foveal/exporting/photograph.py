"""The bundled photograph as the input that a file of float16 is compared on.

On noise, linear attention sometimes has a query without a clearly positive feature. Its output is then a quotient of
two roundings, and the logits of the bundled EfficientViT-B0 in float16 differ by up to 0.04 of the largest, on 5 images
of 36. On photographs that does not occur: at most 0.006, on 120 images of CamVid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .. import assets
from ..info import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from .graph import Feed, Graph


def on_photograph(graph: Graph) -> Graph:
    """The same network with the photograph in place of the images of its feeds; embeddings and prompts stay."""
    return replace(graph, feeds=tuple(_with_photograph(feed, graph.info.preprocess) for feed in graph.feeds))


def _with_photograph(feed: Feed, prepare: Preprocess) -> Feed:
    return {name: _LAYOUTS[name](value, prepare) if name in _LAYOUTS else value for name, value in feed.items()}


def _batch(value: NDArray[Any], prepare: Preprocess) -> NDArray[Any]:
    """Images ``(N, C, H, W)``, normalised, or those of 8 bits ``(N, H, W, C)``; every second one is mirrored."""
    number, *shape = value.shape
    if value.dtype == np.uint8:
        image = _pixels(*shape)
    else:
        channels, height, width = shape
        # Statistics of other images than usual photographs would put the photograph out of the model's range.
        usual = prepare.dtype == "uint8" and channels == len(IMAGENET_MEAN)
        mean, std = (prepare.mean, prepare.std) if usual else (IMAGENET_MEAN, IMAGENET_STD)
        pixels = _pixels(height, width, channels).astype(np.float32) / 255
        image = (pixels - np.resize(mean, channels)) / np.resize(std, channels)
    images = np.stack([image[:, :: (-1) ** index] for index in range(number)])
    return np.ascontiguousarray(images if value.dtype == np.uint8 else images.transpose(0, 3, 1, 2), value.dtype)


def _pixels(height: int, width: int, channels: int) -> NDArray[np.uint8]:
    """The photograph with its colours repeated to a number of channels, ``(H, W, C)``."""
    with Image.open(assets.path("street", ".jpg")) as opened:
        rgb = np.asarray(opened.convert("RGB").resize((width, height)))
    return rgb[..., np.arange(channels) % rgb.shape[2]]


#: What takes the place of an input, by its name.
_LAYOUTS: dict[str, Callable[[NDArray[Any], Preprocess], NDArray[Any]]] = {
    "image": _batch,
    "input_image": lambda value, _: _pixels(*value.shape).astype(value.dtype),
}
