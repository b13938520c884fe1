"""Derive steps from the networks whose attention in windows has learnt biases: EfficientViT-M and TinyViT."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from ..layers.cascaded_attention import CascadedGroupAttention
from ..layers.conv import ConvNormAct
from ..layers.linear import NormLinear
from ..models.efficientvit_m import ClassifierHead, Downsample, EfficientViTMBlock
from ..models.tinyvit import AttentionBlock, ConvBlock, Merge, WindowAttention
from .builder import Builder, Lowering, NotCoveredError, bias_of
from .lowering_tokens import linear

# ---- EfficientViT-M


def _m_block(builder: Builder, module: EfficientViTMBlock, x: int) -> int:
    x = _plus_feed_forward(builder, module.mlp1, _plus_depthwise(builder, module.conv1, x))
    x = _plus_cascaded_attention(builder, module.attention, x)
    return _plus_feed_forward(builder, module.mlp2, _plus_depthwise(builder, module.conv2, x))


def _downsample(builder: Builder, module: Downsample, x: int) -> int:
    x = _plus_feed_forward(builder, module.mlp1, _plus_depthwise(builder, module.conv1, x))
    x = builder.lower(module.merge, x)
    return _plus_feed_forward(builder, module.mlp2, _plus_depthwise(builder, module.conv2, x))


def _plus_depthwise(builder: Builder, module: ConvNormAct, x: int) -> int:
    """``x`` plus its depthwise convolution, which is one with the kernel whose centre is 1 larger."""
    builder.check_folded(module)
    conv = copy.deepcopy(module.conv)
    conv.weight[:, :, conv.kernel_size[0] // 2, conv.kernel_size[1] // 2] += 1
    return builder.conv(conv, x)


def _plus_feed_forward(builder: Builder, module: nn.Sequential, x: int) -> int:
    expand, project = module
    assert isinstance(expand, ConvNormAct)
    assert isinstance(project, ConvNormAct)
    return builder.conv_norm_act(project, builder.conv_norm_act(expand, x), residual=x)


def _plus_cascaded_attention(builder: Builder, module: CascadedGroupAttention, x: int) -> int:
    windows = builder.add("cut_windows", (x,), side=module.window_size)
    key, _, width = module.split
    outputs: list[int] = []
    for head, (qkv, query_conv) in enumerate(zip(module.qkv, module.query_convs, strict=True)):
        assert isinstance(qkv, ConvNormAct)
        builder.check_folded(qkv)
        weight, bias = qkv.conv.weight[:, :, 0, 0], bias_of(qkv.conv)
        before = outputs[-1] if outputs else None
        y = builder.add("slice", (windows,), residual=before, first=head * width, count=width)
        query = builder.lower(query_conv, linear(builder, y, weight[:key], bias[:key]))
        others = linear(builder, y, weight[key:], bias[key:])
        y = builder.add(
            "biased_attention", (query, others, others), arrays={"bias": module.position_biases[head : head + 1]},
            heads=1, head_dim=key, value_dim=width, query_first=0, key_first=0, value_first=key, scale=key**-0.5,
        )  # fmt: skip
        outputs.append(y)
    y = builder.conv_norm_act(module.project, builder.add("concat", tuple(outputs), act="relu"))
    return builder.add("join_windows", (y, x), residual=x)


def _m_classifier(builder: Builder, head: ClassifierHead, x: int) -> int:
    pooled = builder.add("mean", (x,))
    if head.classifier_distilled is None:
        return builder.lower(head.classifier, pooled)
    mean = copy.deepcopy(head.classifier)
    assert isinstance(mean, NormLinear)
    mean.weight.add_(head.classifier_distilled.weight).div_(2)
    mean.bias.add_(head.classifier_distilled.bias).div_(2)
    return builder.lower(mean, pooled)


def _norm_linear(builder: Builder, module: NormLinear, x: int) -> int:
    if type(module.norm) is not nn.Identity:
        raise NotCoveredError(
            f"{builder.info.model}: the native engine has no operation for {type(module.norm).__name__}"
        )
    return builder.linear(module, x)


# ---- TinyViT


def _conv_block(builder: Builder, module: ConvBlock, x: int) -> int:
    y = builder.chain("inverted_residual", module.depthwise, module.project, x, None, expand=module.expand)
    return builder.add("add", (y, x), act="gelu")


def _merge(builder: Builder, module: Merge, x: int) -> int:
    expand, depthwise, project = module
    assert isinstance(expand, ConvNormAct)
    assert isinstance(depthwise, ConvNormAct)
    assert isinstance(project, ConvNormAct)
    return builder.chain("inverted_residual", depthwise, project, x, None, expand=expand)


def _attention_block(builder: Builder, module: AttentionBlock, x: int) -> int:
    attention = module.attention
    windows = builder.add("cut_windows", (x,), side=module.window_size)
    y = builder.add("join_windows", (builder.lower(attention, windows), x), residual=x)
    y = builder.lower(module.local, y)
    hidden = builder.linear(module.mlp.fc1, builder.lower(module.norm, y), act=builder.activation(module.mlp.act))
    return builder.linear(module.mlp.fc2, hidden, residual=y)


def _window_attention(builder: Builder, module: WindowAttention, x: int) -> int:
    heads, channels = module.num_heads, module.project.in_features
    dim = channels // heads

    def by_part(rows: Tensor) -> Tensor:
        """The queries of all heads, then the keys, then the values, from (head, part, channel)."""
        return rows.unflatten(0, (heads, 3, dim)).transpose(0, 1).flatten(0, 2)

    qkv = linear(builder, builder.lower(module.norm, x), by_part(module.qkv.weight), by_part(bias_of(module.qkv)))
    y = builder.add(
        "biased_attention", (qkv, qkv, qkv), arrays={"bias": module.biases}, heads=heads, head_dim=dim, value_dim=dim,
        query_first=0, key_first=channels, value_first=2 * channels, scale=dim**-0.5,
    )  # fmt: skip
    return builder.linear(module.project, y)


WINDOWS: dict[type[nn.Module], Lowering] = {
    EfficientViTMBlock: _m_block,
    Downsample: _downsample,
    ClassifierHead: _m_classifier,
    NormLinear: _norm_linear,
    ConvBlock: _conv_block,
    Merge: _merge,
    AttentionBlock: _attention_block,
    WindowAttention: _window_attention,
}
