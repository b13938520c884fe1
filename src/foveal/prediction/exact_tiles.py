"""Exact tiling of networks whose only global operation is linear attention: tiles give the whole image's result.

Linear attention depends on the image only through two sums over all positions, ``phi(k)^T v`` and ``sum phi(k)``
(arXiv 2006.16236). The sums are computed tile by tile, one layer after the other. With the sums of the earlier layers
in place, the inner part of each tile is what it would be in the whole image; the margin around it is as wide as the
receptive field of the convolutions. This takes one pass over the image for each attention layer and one for the result,
which equals that of the whole image within rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..layers.linear_attention import MultiScaleLinearAttention

_GRID = 8  # tiles and their inner parts begin on multiples of it, which is a multiple of every stride here


class _ReachedError(Exception):
    """Ends a pass when the input of the requested layer is known."""


@contextmanager
def whole_context(model: nn.Module, image: NDArray, tile: int, reach: int) -> Iterator[None]:
    """Inside this context, every attention layer of ``model`` uses the sums over ``image``, not over its input.

    Args:
        model: in evaluation mode, with input from 0 to 1.
        image: ``(H, W, 3)`` uint8 or uint16.
        tile: side of the inner part of each tile, a multiple of 8.
        reach: receptive field of everything but attention, in pixels on each side of a pixel.
    """
    layers = [module for module in model.modules() if isinstance(module, MultiScaleLinearAttention)]
    try:
        for layer in layers:
            layer.context_override = _sums(model, layer, image, tile, -(-reach // _GRID) * _GRID)
        yield
    finally:
        for layer in layers:
            layer.context_override = None


@torch.inference_mode()
def _sums(
    model: nn.Module, layer: MultiScaleLinearAttention, image: NDArray, tile: int, margin: int
) -> tuple[Tensor, Tensor]:
    """``head_dim`` keys and values whose two sums equal those over all positions of the image."""
    height, width = image.shape[:2]
    weight = next(model.parameters())
    context = norm = torch.zeros((), dtype=torch.float64)
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            first_y, first_x = max(0, top - margin), max(0, left - margin)
            window = image[first_y : top + tile + margin, first_x : left + tile + margin]
            x = torch.from_numpy(window.astype(np.float32) / np.iinfo(image.dtype).max).permute(2, 0, 1)[None]
            features = _layer_input(model, layer, x.to(weight))
            h, w = features.shape[-2:]
            stride = round(window.shape[0] / h)
            _, keys, values = (part.unflatten(-2, (h, w)) for part in layer.heads(features))
            rows, columns = (
                slice((start - first) // stride, -(-(min(start + tile, side) - first) // stride))
                for start, first, side in ((top, first_y, height), (left, first_x, width))
            )
            k, v = (part[..., rows, columns, :].flatten(-3, -2).double().cpu() for part in (keys, values))
            k = k.relu()
            context, norm = context + k.transpose(-2, -1) @ v, norm + k.sum(-2)
    # Key d is norm[d] along axis d and 0 along the others; value d makes their product row d of the context.
    virtual = torch.where(norm[..., None] > 0, context / norm[..., None], 0.0)
    return torch.diag_embed(norm).to(weight), virtual.to(weight)


def _layer_input(model: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
    """Input of ``layer`` when ``model`` runs on ``x``; the layers behind it do not run."""
    captured: list[Tensor] = []

    def capture(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        captured.append(inputs[0])
        raise _ReachedError

    handle = layer.register_forward_pre_hook(capture)
    try:
        with suppress(_ReachedError):
            model(x)
    finally:
        handle.remove()
    return captured[0]
