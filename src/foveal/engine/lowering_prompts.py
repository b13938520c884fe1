"""Derive the plan of SAM's mask decoder, in the formulation with the fewest multiplications.

The plan "prompts" reads an embedding ``(1 or P, 256, 64, 64)``, to which it adds the encoding of "no mask", and tokens
``(P, 256, 1, N)``: the decoder's own five, then those of the prompts. Its results are the predicted IoU ``(P, 4)`` and
the mask logits ``(P, 4, 256, 256)``. What turns points into tokens is in the plan too, as arrays of these names.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..tasks.mask_decoder import EMBED_DIM
from ..tasks.prompt import PromptEncoder, PromptModel
from .builder import Builder, Lowering, bias_of
from .lowering_tokens import linear
from .plan import POINT_ARRAYS


def _grouped(
    builder: Builder, x: int, weight: Tensor, groups: int, bias: Tensor | None = None, act: str = "none"
) -> int:
    """A linear layer for each group of channels."""
    arrays = {"weight": weight[:, :, None, None], "bias": torch.zeros(len(weight)) if bias is None else bias}
    return builder.add(
        "conv", (x,), act=act, arrays=arrays, kernel=1, stride=1, groups=groups, padding="symmetric"
    )  # fmt: skip


class _Decoder:
    """Adds the steps of a mask decoder. Tokens are maps with one row.

    As in :class:`foveal.tasks.mask_decoder.MaskDecoder`, projections of the image are multiplied into the tokens.
    """

    def __init__(self, builder: Builder, image: int, tokens: int, image_pe: Tensor) -> None:
        self.builder, self.image, self.tokens, self.token_pe = builder, image, tokens, tokens
        self.image_pe = image_pe  # (64, 64, 256)
        self.table = ""  # name of that array in the plan
        self.with_pe: tuple[int, int] | None = None  # an image, and its sum with the positional encoding

    def sum(self, a: int, b: int) -> int:
        return self.builder.add("add", (a, b))

    def norm(self, norm: Any, x: int, act: str = "none") -> int:
        arrays = {"weight": norm.weight, "bias": norm.bias}
        return self.builder.add("layer_norm", (x,), act=act, arrays=arrays, eps=norm.eps)

    def image_with_pe(self) -> int:
        if self.with_pe is None or self.with_pe[0] != self.image:
            out = self.builder.add("table", (self.image,), arrays={"table": self.image_pe})
            step = self.builder.steps[-1]
            name = self.table = self.table or step.weights["table"]
            if name != step.weights["table"]:  # the array is in the plan once
                del self.builder.weights[step.weights["table"]]
                self.builder.steps[-1] = replace(step, weights={"table": name})
            self.with_pe = self.image, out
        return self.with_pe[1]

    def self_attention(self, module: Any, first: bool) -> int:
        builder = self.builder
        with_pe = self.tokens if first else self.sum(self.tokens, self.token_pe)
        q, k = builder.linear(module.q_proj, with_pe), builder.linear(module.k_proj, with_pe)
        v, heads = builder.linear(module.v_proj, self.tokens), module.num_heads
        dim = module.q_proj.out_features // heads
        y = builder.add(
            "attention", (q, k, v), heads=heads, kv_heads=heads, head_dim=dim, window=0, scale=module.scale
        )  # fmt: skip
        return builder.linear(module.out_proj, y, residual=None if first else self.tokens)

    def read(self, module: Any) -> int:
        """Attention of the tokens to the image, plus the tokens."""
        builder, heads = self.builder, module.num_heads
        query = linear(
            builder, self.sum(self.tokens, self.token_pe), module.q_proj.weight * module.scale,
            module.q_proj.bias * module.scale,
        )  # fmt: skip
        # The bias of the keys adds the same number to all scores of a query, which the softmax removes.
        keys = module.k_proj.weight.unflatten(0, (heads, -1)).transpose(1, 2).flatten(0, 1)
        query = builder.add("split", (_grouped(builder, query, keys, heads),), parts=heads)
        averages = builder.add("read_map", (query, self.image_with_pe(), self.image))
        averages = builder.add("join", (averages,), parts=heads)
        attended = _grouped(builder, averages, module.v_proj.weight, heads, module.v_proj.bias)
        return builder.linear(module.out_proj, attended, residual=self.tokens)

    def write(self, module: Any) -> int:
        """Attention of the image to the tokens, plus the image."""
        builder, heads = self.builder, module.num_heads
        keys = builder.linear(module.k_proj, self.sum(self.tokens, self.token_pe))
        queries = (module.q_proj.weight * module.scale).unflatten(0, (heads, -1)).transpose(1, 2).flatten(0, 1)
        bias = torch.block_diag(*(module.q_proj.bias * module.scale).unflatten(0, (heads, 1, -1)))  # (heads, inner)
        values = builder.linear(module.v_proj, self.tokens)
        outputs = module.out_proj.weight.unflatten(1, (heads, -1)).transpose(0, 1).flatten(0, 1)
        keys_of_heads = builder.add("split", (_grouped(builder, keys, queries, heads),), parts=heads)
        values_of_heads = builder.add("split", (_grouped(builder, values, outputs, heads),), parts=heads)
        inputs = (self.image_with_pe(), keys_of_heads, values_of_heads, linear(builder, keys, bias))
        return builder.add("write_map", inputs, residual=self.image, arrays={"bias": module.out_proj.bias})

    def block(self, module: Any) -> None:
        self.tokens = self.norm(module.norm1, self.self_attention(module.self_attn, module.first))
        self.tokens = self.norm(module.norm2, self.read(module.cross_attn_token_to_image))
        hidden = self.builder.linear(module.mlp.lin1, self.tokens, act="relu")
        self.tokens = self.norm(module.norm3, self.builder.linear(module.mlp.lin2, hidden, residual=self.tokens))
        self.image = self.norm(module.norm4, self.write(module.cross_attn_image_to_token))

    def iou(self, head: Any) -> None:
        x = self.builder.add("regroup", (self.tokens,), first=0, count=EMBED_DIM, channels=EMBED_DIM)
        for layer in head.layers:
            x = self.builder.linear(layer, x, act="none" if layer is head.layers[-1] else "relu")
        self.builder.add("vector", (x,))

    def factors(self, networks: Any) -> int:
        """Factors of the features for each mask, ``(1, masks, 32)``: the networks side by side as groups."""
        masks = len(networks)
        size = masks * EMBED_DIM
        x = self.builder.add("regroup", (self.tokens,), first=EMBED_DIM, count=size, channels=size)
        for layers in zip(*(network.layers for network in networks), strict=True):
            weight = torch.cat([layer.weight for layer in layers])
            bias = torch.cat([bias_of(layer) for layer in layers])
            act = "none" if layers[0] is networks[0].layers[-1] else "relu"
            x = _grouped(self.builder, x, weight, masks, bias, act)
        return self.builder.add("split", (x,), parts=masks)

    def features(self, upscaling: nn.Sequential) -> int:
        """Features of 4x4 pixels for each position: ``(128, 128, 4 * 32)``."""
        first, norm, act, second, last = cast("Any", tuple(upscaling))
        builder = self.builder
        x = linear(builder, self.image, *_by_pixel(first))
        x = builder.add("pixel_shuffle", (x,), factor=2)
        x = self.norm(norm, x, builder.activation(act))
        return linear(builder, x, *_by_pixel(second), act=builder.activation(last))


def _by_pixel(conv: nn.ConvTranspose2d) -> tuple[Tensor, Tensor]:
    """A transposed convolution of kernel and stride 2 as a linear layer whose outputs are (row, column, channel)."""
    assert conv.bias is not None
    return conv.weight.permute(2, 3, 1, 0).flatten(0, 2), conv.bias.repeat(4)


def _prompts(builder: Builder, model: PromptModel, _: int) -> int:
    encoder, decoder = model.prompt_encoder, cast("Any", model.mask_decoder)
    arrays = {"scale": torch.ones(EMBED_DIM), "shift": encoder.no_mask_embed.weight[0]}
    image = builder.add("input", (0,), arrays=arrays, multiple=1)
    tokens = builder.add("array", (), number=1)
    image_pe = encoder.get_dense_pe()[0].permute(1, 2, 0)
    steps = _Decoder(builder, image, tokens, image_pe)
    for layer in decoder.transformer.layers:
        steps.block(layer)
    last = decoder.transformer
    steps.tokens = steps.norm(last.norm_final_attn, steps.read(last.final_attn_token_to_image))
    steps.iou(decoder.iou_prediction_head)
    factors = steps.factors(decoder.output_hypernetworks_mlps)
    kinds = torch.cat([encoder.not_a_point_embed.weight, *encoder.point_embeddings.parameters()])
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    frequencies = encoder.pe_layer.positional_encoding_gaussian_matrix
    for name, tensor in zip(POINT_ARRAYS, (frequencies, kinds, own), strict=True):
        builder.weights[name] = tensor.detach().float().numpy().copy()
    return builder.add("masks", (steps.features(decoder.output_upscaling), factors))


def _mask_encoder(builder: Builder, model: PromptEncoder, _: int) -> int:
    """Encode masks ``(P, 1, 256, 256)`` as what they change in an embedding: the encoding of "no mask" is taken off."""
    x = builder.add("input", (0,), arrays={"scale": torch.ones(1), "shift": torch.zeros(1)}, multiple=1)
    *parts, last = cast("Any", model.mask_downscaling)
    for part in parts:
        # Of an even side, "same" padding of a kernel of 2 with stride 2 is none.
        is_conv = isinstance(part, nn.Conv2d)
        x = builder.conv(part, x, same=True) if is_conv else builder.lower(part, x)
    weight, bias = last.weight[:, :, 0, 0], last.bias - model.no_mask_embed.weight[0]
    return builder.add("output", (linear(builder, x, weight, bias),), stride=0)


PROMPTS: dict[type[nn.Module], Lowering] = {PromptModel: _prompts, PromptEncoder: _mask_encoder}
