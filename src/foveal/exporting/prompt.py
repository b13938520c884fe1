"""Promptable models as networks: image encoder, decoder in SAM's contract, decoder for many prompts, mask encoder."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..images.sam_frame import FRAME, LOW_RES
from ..info import ModelInfo
from ..prediction.exported import AT_ONCE, NetworkPrompter
from ..tasks.prompt import EMBED_DIM, GRID, PromptEncoder, PromptModel
from .graph import Feed, Graph, Source

MAX_POINTS = 64  #: largest number of points of a prompt in formats whose free dimensions need a bound
POINTS = (2, 3, 4, 5)  #: numbers of points of a prompt in formats without free dimensions; a box is two, no box is one


class _SamDecoder(nn.Module):
    """The decoder for one prompt, with the inputs and outputs of SAM's own export: SAM's clients can use the file.

    Points are in the frame of 1024 pixels, a box is two points with the labels 2 and 3; a prompt without a box ends
    with a point of label -1.
    """

    def __init__(self, model: PromptModel) -> None:
        super().__init__()
        self.prompt_encoder, self.mask_decoder = model.prompt_encoder, model.mask_decoder

    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
        orig_im_size: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        encoder = self.prompt_encoder
        sparse = encoder.tokens(point_coords, point_labels)
        dense = torch.where(has_mask_input.reshape(1, 1, 1, 1) > 0, encoder.dense(mask_input), encoder.dense(None))
        low_res, iou = self.mask_decoder.all_masks(image_embeddings, encoder.get_dense_pe(), sparse, dense)
        sides = orig_im_size.round()
        inside = (sides * (FRAME / sides.max()) + 0.5).floor()
        rows, columns = (_resampling(inside[i], sides[i]) for i in (0, 1))
        return rows @ low_res @ columns.T, iou, low_res


def _resampling(inside: Tensor, side: Tensor) -> Tensor:
    """Matrix ``(side, 256)`` that resamples low-resolution logits to the image's size along one axis.

    As SAM does, it resizes to the frame first and to the image from there. A matrix of hat functions takes the place
    of the two resizes, because their sizes would be data, which few exporters support.
    """
    length = side.to(torch.int64).item()
    torch._check(length >= 1)
    to_frame = _hats(torch.arange(FRAME), float(LOW_RES) / FRAME, torch.tensor(float(LOW_RES)), LOW_RES)
    return _hats(torch.arange(length), inside / side, inside, FRAME) @ to_frame


def _hats(pixel: Tensor, step: Tensor | float, inside: Tensor, length: int) -> Tensor:
    """Weights of bilinear interpolation at pixels whose centres lie ``step`` apart; positions end at the borders."""
    position = ((pixel + 0.5) * step - 0.5).clamp(min=torch.zeros(()), max=inside - 1)
    return (1 - (position[:, None] - torch.arange(length)).abs()).clamp(min=0)


class _BatchDecoder(nn.Module):
    """The decoder for P prompts of N points on one image; a box is two points with the labels 2 and 3."""

    def __init__(self, model: PromptModel) -> None:
        super().__init__()
        self.prompt_encoder, self.mask_decoder = model.prompt_encoder, model.mask_decoder

    def forward(self, image_embeddings: Tensor, point_coords: Tensor, point_labels: Tensor) -> tuple[Tensor, Tensor]:
        encoder = self.prompt_encoder
        sparse, dense = encoder.tokens(point_coords, point_labels), _no_mask(encoder)
        return self.mask_decoder.all_masks(image_embeddings, encoder.get_dense_pe(), sparse, dense)


class _MaskEncoder(nn.Module):
    """What mask inputs change in an embedding."""

    def __init__(self, model: PromptModel) -> None:
        super().__init__()
        self.prompt_encoder = model.prompt_encoder

    def forward(self, masks: Tensor) -> Tensor:
        return self.prompt_encoder.dense(masks) - _no_mask(self.prompt_encoder)


def _no_mask(encoder: PromptEncoder) -> Tensor:
    """What a prompt without a mask adds to each position of the embedding, ``(1, 256, 1, 1)``.

    It is not expanded to the positions, as in the model: LiteRT's converter gives that tensor another layout.
    """
    return encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)


def prompt_graphs(source: Source) -> list[Graph]:
    """The networks of a promptable model: encoder, decoder as SAM exports it, decoder for many prompts, mask encoder.

    Each format has files of some of them. Within limits, the encoder and the mask encoder take one input at once, and
    the decoder for many prompts takes as many as :class:`~foveal.prediction.exported.NetworkPrompter` gives it.

    The description of each holds the fingerprint of the image encoder, which tells embeddings of other encoders apart.
    """
    model, folded = source.model, source.folded
    assert isinstance(model, PromptModel)
    assert isinstance(folded, PromptModel)
    notes = source.info.notes | {"encoder": model.image_encoder.fingerprint()}
    info = source.info.replace(notes=notes)
    functions = (_encoder, _decoder, _many_prompts, _mask_encoder)
    limits = source.limits
    if limits.fixed:
        info = info.replace(notes=info.notes | {AT_ONCE: 1})
    graphs = [replace(function(model, folded, info), model=model) for function in functions]
    return graphs if limits.size is None else [_limited(graph, limits.fixed) for graph in graphs]


def _limited(graph: Graph, fixed: bool) -> Graph:
    """The same network for formats whose free dimensions need a bound, or that have none."""
    if graph.part == "decoder":  # no such format has it
        return graph
    if graph.part == "prompts" and not fixed:
        return replace(graph, bounds={"prompts": NetworkPrompter.at_once, "points": MAX_POINTS})
    one = replace(graph, feeds=tuple({name: value[:1] for name, value in feed.items()} for feed in graph.feeds))
    if graph.part == "prompts":
        shapes = [(graph.example[0], torch.zeros(1, count, 2), torch.zeros(1, count)) for count in POINTS]
    else:
        shapes = [tuple(value[:1] for value in graph.example)]
    fixed_inputs, fixed_outputs = dict.fromkeys(graph.inputs, ()), dict.fromkeys(graph.outputs, ())
    return replace(one, example=shapes[0], variants=tuple(shapes[1:]), inputs=fixed_inputs, outputs=fixed_outputs)


def _encoder(model: PromptModel, folded: PromptModel, info: ModelInfo) -> Graph:
    """Images to embeddings."""
    size = folded.image_encoder.size
    return Graph(
        part="encoder",
        network=folded.image_encoder,
        reference=model.image_encoder,
        info=info,
        example=(torch.zeros(2, info.in_chans, size, size),),
        inputs={"image": ("batch",)},
        outputs={"image_embeddings": ("batch",)},
        feeds=({"image": _normal(np.random.default_rng(0), 1, info.in_chans, size, size)},),
    )


def _decoder(model: PromptModel, folded: PromptModel, info: ModelInfo) -> Graph:
    """One prompt, with masks at the size of the image."""
    return Graph(
        part="decoder",
        network=_SamDecoder(folded),
        reference=_SamDecoder(model),
        info=info,
        example=(
            torch.zeros(1, EMBED_DIM, GRID, GRID),
            torch.zeros(1, 3, 2),
            torch.zeros(1, 3),
            torch.zeros(1, 1, LOW_RES, LOW_RES),
            torch.zeros(1),
            torch.tensor([300.0, 400.0]),
        ),
        inputs={
            "image_embeddings": (),
            "point_coords": ("", "points"),
            "point_labels": ("", "points"),
            "mask_input": (),
            "has_mask_input": (),
            "orig_im_size": (),
        },
        outputs={"masks": ("", "", "height", "width"), "iou_predictions": (), "low_res_masks": ()},
        feeds=_decoder_feeds(),
    )


def _many_prompts(model: PromptModel, folded: PromptModel, info: ModelInfo) -> Graph:
    """Many prompts, with low-resolution masks."""
    return Graph(
        part="prompts",
        network=_BatchDecoder(folded),
        reference=_BatchDecoder(model),
        info=info,
        example=(torch.zeros(1, EMBED_DIM, GRID, GRID), torch.zeros(2, 3, 2), torch.zeros(2, 3)),
        inputs={"image_embeddings": (), "point_coords": ("prompts", "points"), "point_labels": ("prompts", "points")},
        outputs={"low_res_masks": ("prompts",), "iou_predictions": ("prompts",)},
        feeds=_prompts_feeds(),
    )


def _mask_encoder(model: PromptModel, folded: PromptModel, info: ModelInfo) -> Graph:
    """Mask inputs to addends of the embedding."""
    return Graph(
        part="masks",
        network=_MaskEncoder(folded),
        reference=_MaskEncoder(model),
        info=info,
        example=(torch.zeros(2, 1, LOW_RES, LOW_RES),),
        inputs={"mask_input": ("prompts",)},
        outputs={"addends": ("prompts",)},
        feeds=({"mask_input": 8 * _normal(np.random.default_rng(0), 2, 1, LOW_RES, LOW_RES)},),
    )


#: Labels of the points of each prompt that is compared: a click, a box, and both.
_KINDS = ([1, -1], [2, 3], [1, 0, 2, 3])


def _decoder_feeds() -> tuple[Feed, ...]:
    """One prompt of each kind, the last with a mask, for images of three sizes."""
    rng = np.random.default_rng(0)
    feeds = []
    for labels, size in zip(_KINDS, ((213, 320), (700, 501), (64, 48)), strict=True):
        feed = _points(rng, labels, 1)
        feed["mask_input"] = 8 * _normal(rng, 1, 1, LOW_RES, LOW_RES)
        feed["has_mask_input"] = np.array([float(len(labels) > 2)], np.float32)
        feed["orig_im_size"] = np.array(size, np.float32)
        feeds.append(feed)
    return tuple(feeds)


def _prompts_feeds() -> tuple[Feed, ...]:
    """One, three and five prompts, each number of another kind."""
    rng = np.random.default_rng(0)
    return tuple(_points(rng, labels, count) for labels, count in zip(_KINDS, (1, 3, 5), strict=True))


def _points(rng: np.random.Generator, labels: list[int], count: int) -> dict[str, NDArray[np.float32]]:
    """An embedding, and ``count`` prompts whose points have these labels."""
    return {
        "image_embeddings": _normal(rng, 1, EMBED_DIM, GRID, GRID),
        "point_coords": rng.uniform(0, FRAME, (count, len(labels), 2)).astype(np.float32),
        "point_labels": np.tile(np.array(labels, np.float32), (count, 1)),
    }


def _normal(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return rng.standard_normal(shape).astype(np.float32)
