"""Windows that see the whole image: exact tiling of networks whose only long view is linear attention.

Linear attention reads the image through two sums over all positions, ``phi(k)^T v`` and ``sum phi(k)`` (arXiv
2006.16236). They are taken over windows, layer by layer: with the sums of the layers before in place, each window's
own part is what it would be in the whole image, but for a margin as wide as the convolutions' view. One pass over the
image for each attention layer, and one for the result, which is then that of the whole image within rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..layers.linear_attention import MultiScaleLinearAttention

_GRID = 8  # windows and their parts begin on multiples of it, a multiple of every stride here


class _ReachedError(Exception):
    """The layer that a pass is about has its input."""


@contextmanager
def whole_context(model: nn.Module, image: NDArray, tile: int, reach: int) -> Iterator[None]:
    """While inside, every attention of ``model`` sees all of ``image``, whatever window it is given.

    Args:
        model: in evaluation mode; images enter on the 0..1 scale.
        image: ``(H, W, 3)`` uint8 or uint16.
        tile: side of each window's own part, a multiple of 8.
        reach: pixels around one that anything but attention looks at.
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
    """Keys and values, ``head_dim`` of each, whose sums are those over all positions of the image."""
    height, width = image.shape[:2]
    weight = next(model.parameters())
    context = norm = torch.zeros((), dtype=torch.float64)
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            first_y, first_x = max(0, top - margin), max(0, left - margin)
            window = image[first_y : top + tile + margin, first_x : left + tile + margin]
            x = torch.from_numpy(window.astype(np.float32) / np.iinfo(image.dtype).max).permute(2, 0, 1)[None]
            seen = _input_of(model, layer, x.to(weight))
            h, w = seen.shape[-2:]
            stride = round(window.shape[0] / h)
            _, keys, values = (part.unflatten(-2, (h, w)) for part in layer.heads(seen))
            rows, columns = (
                slice((start - first) // stride, -(-(min(start + tile, side) - first) // stride))
                for start, first, side in ((top, first_y, height), (left, first_x, width))
            )
            k, v = (part[..., rows, columns, :].flatten(-3, -2).double().cpu() for part in (keys, values))
            k = k.relu()
            context, norm = context + k.transpose(-2, -1) @ v, norm + k.sum(-2)
    # Position d has the key norm[d] along axis d alone, and the value that makes its product the context's row d.
    virtual = torch.where(norm[..., None] > 0, context / norm[..., None], 0.0)
    return torch.diag_embed(norm).to(weight), virtual.to(weight)


def _input_of(model: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
    """What reaches ``layer`` when ``model`` sees ``x``; nothing behind it runs."""
    caught: list[Tensor] = []

    def catch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        caught.append(inputs[0])
        raise _ReachedError

    handle = layer.register_forward_pre_hook(catch)
    try:
        with suppress(_ReachedError):
            model(x)
    finally:
        handle.remove()
    return caught[0]
