"""Derive steps from modules that work on tokens: transformer blocks, and the state spaces of MambaVision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..layers.attention import Attention
from ..layers.classifiers import NormClassifier
from ..layers.mamba_mixer import MambaMixer
from ..layers.mlp import Mlp
from ..layers.sharing import SharedLayers
from ..layers.stage_blocks import BlockStage
from ..layers.transformer_block import TransformerBlock
from ..layers.window_blocks import MixerBlock, WindowBlocks
from ..models.mambavision import ClassifierHead as MambaClassifier
from ..models.mambavision import WindowStage
from ..models.vit import Positions
from .builder import Builder, Lowering, NotCoveredError, bias_of


def linear(
    builder: Builder, x: int, weight: Tensor, bias: Tensor | None = None, *, act: str = "none",
    residual: int | None = None,
) -> int:  # fmt: skip
    """A linear layer ``(out, in)`` over the channels of every position."""
    arrays = {"weight": weight[:, :, None, None], "bias": torch.zeros(len(weight)) if bias is None else bias}
    common = {"kernel": 1, "stride": 1, "groups": 1, "padding": "symmetric"}
    return builder.add("conv", (x,), act=act, residual=residual, arrays=arrays, **common)


def _scaled(layer: nn.Linear, factor: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear layer whose result is multiplied by ``factor``, one number for each channel."""
    if factor is None:
        return layer.weight, bias_of(layer)
    return layer.weight * factor[:, None], bias_of(layer) * factor


def _mlp(builder: Builder, module: Mlp, x: int, *, residual: int | None = None, factor: Tensor | None = None) -> int:
    y = builder.linear(module.fc1, x, act=builder.activation(module.act))
    return linear(builder, y, *_scaled(module.fc2, factor), residual=residual)


def _attention(
    builder: Builder, module: Attention, x: int, *, window: int = 0, residual: int | None = None,
    factor: Tensor | None = None,
) -> int:  # fmt: skip
    if module.causal or module.rope_base is not None or type(module.q_norm) is not nn.Identity:
        raise NotCoveredError(f"{builder.info.model}: the native engine has no causal or rotary attention")
    y = builder.add(
        "attention", (builder.linear(module.qkv, x),), heads=module.num_heads, kv_heads=module.num_kv_heads,
        head_dim=module.head_dim, window=window, scale=module.head_dim**-0.5,
    )  # fmt: skip
    return linear(builder, y, *_scaled(module.proj, factor), residual=residual)


def _transformer_block(builder: Builder, module: TransformerBlock, x: int) -> int:
    if not isinstance(module.attention, Attention):
        kind = type(module.attention).__name__
        raise NotCoveredError(f"{builder.info.model}: the native engine has no operation for {kind}")
    x = _attention(builder, module.attention, builder.lower(module.norm1, x), residual=x)
    return _mlp(builder, module.mlp, builder.lower(module.norm2, x), residual=x)


def _shared_layers(builder: Builder, module: SharedLayers, x: int) -> int:
    for block in module.layers():
        x = builder.lower(block, x)
    return x


def _average(builder: Builder, module: nn.AvgPool2d, x: int) -> int:
    if module.kernel_size != 2 or module.stride != 2 or module.padding != 0 or not module.ceil_mode:
        raise NotCoveredError(f"{builder.info.model}: the native engine does not compute {module}")
    return builder.add("average", (x,))


def _norm_classifier(builder: Builder, head: NormClassifier, x: int) -> int:
    return builder.lower(head.classifier, builder.lower(head.norm, builder.add("mean", (x,))))


# ---- MambaVision


def _mixer(
    builder: Builder, module: MambaMixer, x: int, *, window: int, residual: int | None, factor: Tensor | None
) -> int:
    inner, rank = module.conv1d_x.out_channels, module.step_rank
    both = builder.add(
        "token_conv", (builder.linear(module.in_proj, x),), act="silu", kernel=3, window=window,
        arrays={"weight": torch.cat([module.conv1d_x.weight, module.conv1d_z.weight]), "bias": torch.zeros(2 * inner)},
    )  # fmt: skip
    # Zeros in the weights let a layer read the first channels of a map.
    matrices = linear(builder, both, _widen(module.x_proj.weight, 2 * inner))
    # The bias of the step size is added twice, see models/mambavision.py.
    steps = linear(
        builder, matrices, _widen(module.dt_proj.weight, rank + 2 * module.state_dim), 2 * module.dt_proj.bias,
        act="softplus",
    )  # fmt: skip
    arrays = {"decay": -module.A_log.double().exp().T, "skip": module.D}
    y = builder.add("scan", (both, steps, matrices), window=window, first=rank, arrays=arrays)
    return linear(builder, y, *_scaled(module.out_proj, factor), residual=residual)


def _widen(weight: Tensor, inputs: int) -> Tensor:
    return nn.functional.pad(weight, (0, inputs - weight.shape[1]))


def _mixer_block(builder: Builder, module: MixerBlock, x: int, window: int) -> int:
    mix: Any = _mixer if isinstance(module.mixer, MambaMixer) else _attention
    normed = builder.lower(module.norm1, x)
    x = mix(builder, module.mixer, normed, window=window, residual=x, factor=module.gamma_1)
    return _mlp(builder, module.mlp, builder.lower(module.norm2, x), residual=x, factor=module.gamma_2)


def _block_stage(builder: Builder, module: BlockStage, x: int) -> int:
    return builder.lower(module.blocks, builder.lower(module.downsample, x))


def _window_blocks(builder: Builder, module: WindowBlocks, x: int) -> int:
    """A stage of blocks in windows.

    If padding takes part in attention, the map itself is padded with zeros and cropped afterwards; otherwise windows at
    the edges are smaller.
    """
    x = whole = builder.lower(module.downsample, x)
    window = 0 if isinstance(module.window_size, str) else module.window_size
    padded = bool(window) and not module.neutral_padding
    if padded:
        x = builder.add("pad", (x,), multiple=window)
    for block in module.blocks:
        assert isinstance(block, MixerBlock)
        x = _mixer_block(builder, block, x, window)
    return builder.add("crop", (x, whole)) if padded else x


def _mamba_classifier(builder: Builder, head: MambaClassifier, x: int) -> int:
    """The norm, which is linear, is part of the classifier."""
    pooled, norm = builder.add("mean", (x,)), head.norm
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - norm.running_mean.double() * factor
    if isinstance(head.classifier, nn.Identity):
        return linear(builder, pooled, torch.diag(factor), shift)
    weight = head.classifier.weight.double()
    return linear(builder, pooled, weight * factor, weight @ shift + bias_of(head.classifier).double())


TOKENS: dict[type[nn.Module], Lowering] = {
    Mlp: _mlp,
    Attention: _attention,
    TransformerBlock: _transformer_block,
    NormClassifier: _norm_classifier,
    Positions: lambda builder, _, x: builder.add("positions", (x,)),
    SharedLayers: _shared_layers,
    nn.AvgPool2d: _average,
    BlockStage: _block_stage,
    WindowStage: _window_blocks,
    WindowBlocks: _window_blocks,
    MambaClassifier: _mamba_classifier,
}
