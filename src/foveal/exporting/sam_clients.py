"""Promptable models as networks for annotation programs that feed pixels: AnyLabeling, samexporter.

Their encoder takes one image as these programs have it, ``input_image`` ``(H, W, channels)`` of 0..255 in float32, and
does the preparation itself. The decoder is that of SAM's own export. What the programs feed was read in their code.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from ..info import ModelInfo
from ..tasks.prompt import PromptModel
from .graph import Feed, Graph, Source
from .prompt import prompt_graphs

#: (H, W) that the programs send, whatever the size of the image, and further sizes to compare the file at.
_SENT, _OTHERS = (684, 1024), ((96, 64), (300, 517))


class _PixelEncoder(nn.Module):
    """Image encoder with its preparation: ``(H, W, channels)`` of 0..255 ``-> (1, 256, 64, 64)``.

    The long side is resized to the encoder's input, with the filter of Pillow's bilinear resize, and the rest is zero
    after the normalisation. The resize is a product of matrices, because its sizes would be data, which few exporters
    support; at the encoder's own size these are identities.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: PromptModel, info: ModelInfo) -> None:
        super().__init__()
        self.encoder = model.image_encoder
        self.register_buffer("mean", 255 * torch.tensor(info.preprocess.mean), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(info.preprocess.std), persistent=False)

    def forward(self, input_image: Tensor) -> Tensor:
        pixels = ((input_image - self.mean) / self.std).permute(2, 0, 1)
        rows, columns = (torch.arange(side, device=pixels.device).float() for side in pixels.shape[1:])
        long_side = torch.maximum(rows[-1], columns[-1]) + 1
        resized = (
            _resize(rows, long_side, self.encoder.size) @ pixels @ _resize(columns, long_side, self.encoder.size).T
        )
        return self.encoder(resized[None])


def _resize(position: Tensor, long_side: Tensor, size: int) -> Tensor:
    """Matrix ``(size, n)`` that resizes an axis of n pixels, ``position`` 0 to n - 1; rows beyond the image are 0."""
    length = position[-1] + 1
    inside = (length * size / long_side + 0.5).floor()
    step = length / inside
    row = torch.arange(size, device=position.device).float()
    centre = (row + 0.5) * step - 0.5
    weights = (1 - (centre[:, None] - position).abs() / step.clamp(min=1)).clamp(min=0)
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-6)
    return weights * (row < inside)[:, None].to(weights.dtype)


def sam_client_graphs(source: Source) -> list[Graph]:
    """Encoder and decoder of a promptable model for these programs."""
    model, folded = source.model, source.folded
    assert isinstance(model, PromptModel)
    assert isinstance(folded, PromptModel)
    decoder = next(graph for graph in prompt_graphs(source) if graph.part == "decoder")
    info = decoder.info
    encoder = Graph(
        part="encoder",
        network=_PixelEncoder(folded, info),
        reference=_PixelEncoder(model, info),
        info=info,
        example=(torch.zeros(*_SENT, info.in_chans),),
        inputs={"input_image": ("image_height", "image_width", "")},
        outputs={"image_embeddings": ()},
        feeds=tuple(_pixels(size, info.in_chans) for size in (_SENT, *_OTHERS)),
    )
    return [replace(encoder, model=model), decoder]


def _pixels(size: tuple[int, int], in_chans: int) -> Feed:
    rng = np.random.default_rng(0)
    return {"input_image": rng.integers(0, 256, (*size, in_chans)).astype(np.float32)}
