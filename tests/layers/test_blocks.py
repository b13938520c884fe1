"""Convolution blocks: padding, closed-form costs against counted ones, residuals, conventions of ports."""

from __future__ import annotations

from typing import Any

import pytest
import timm.layers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from foveal.errors import ConfigError
from foveal.factory.create import create_model
from foveal.layers.conv import (
    ConvNormAct,
    DepthwiseSeparableConv,
    FusedInvertedResidual,
    InvertedResidual,
    SqueezeExcite,
    make_divisible,
    pad_same,
    set_convention,
)
from foveal.layers.drop_path import DropPath
from foveal.measuring import costs
from foveal.measuring.costs import count

PEER: Any = timm.layers
WIDTHS = st.integers(1, 24)
SIZES = st.tuples(st.integers(7, 40), st.integers(7, 40))
KERNELS = st.sampled_from((1, 3, 5, 7))


@settings(max_examples=25, deadline=None)
@given(WIDTHS, WIDTHS, SIZES, KERNELS, st.integers(1, 3), st.integers(0, 5))
def test_costs_of_depthwise_separable(
    chans: int, out: int, size: tuple[int, int], kernel: int, stride: int, reduced: int
) -> None:
    squeeze = (lambda channels: SqueezeExcite(channels, reduced)) if reduced else None
    with torch.device("meta"):
        block = DepthwiseSeparableConv(chans, out, stride, kernel_size=kernel, squeeze=squeeze).eval()
        counted = count(block, chans, size)
    formula = costs.depthwise_separable(chans, out, size, kernel_size=kernel, stride=stride, reduced=reduced)
    assert formula == counted


@settings(max_examples=25, deadline=None)
@given(WIDTHS, WIDTHS, SIZES, KERNELS, st.integers(1, 3), st.integers(0, 5), st.floats(1, 6.5), st.booleans())
def test_costs_of_inverted_residuals(
    chans: int, out: int, size: tuple[int, int], kernel: int, stride: int, reduced: int, ratio: float, fewer: bool
) -> None:
    squeeze = (lambda channels: SqueezeExcite(channels, reduced)) if reduced else None
    common = {"kernel_size": kernel, "expand_ratio": ratio, "fewer_norm": fewer}
    with torch.device("meta"):
        block = InvertedResidual(chans, out, stride, squeeze=squeeze, **common).eval()
        fused = FusedInvertedResidual(chans, out, stride, **common).eval()
        counted, counted_fused = count(block, chans, size), count(fused, chans, size)
    assert costs.inverted_residual(chans, out, size, stride=stride, reduced=reduced, **common) == counted
    assert costs.fused_inverted_residual(chans, out, size, stride=stride, **common) == counted_fused


@settings(max_examples=25, deadline=None)
@given(WIDTHS, st.integers(1, 12), SIZES, KERNELS, st.integers(1, 3), st.booleans(), st.booleans())
def test_costs_of_a_convolution_and_of_squeeze_and_excitation(
    groups: int, out: int, size: tuple[int, int], kernel: int, stride: int, bias: bool, norm: bool
) -> None:
    chans, outs = 2 * groups, out * groups
    kinds = {"groups": groups, "bias": bias, "norm": norm}
    with torch.device("meta"):
        counted = count(ConvNormAct(chans, outs, kernel, stride, **kinds).eval(), chans, size)
        squeezed = count(SqueezeExcite(chans, out).eval(), chans, size)
    assert costs.convolution(chans, outs, size, kernel_size=kernel, stride=stride, **kinds) == counted
    assert costs.squeeze_excite(chans, out) == squeezed


def test_reduction_of_a_separable_convolution() -> None:
    assert round(costs.separable_reduction(3, 256), 2) == 8.69
    for kernel, chans in ((3, 16), (5, 40), (7, 96)):
        dense = costs.convolution(chans, chans, (9, 13), kernel_size=kernel).macs
        separable = costs.depthwise_separable(chans, chans, (9, 13), kernel_size=kernel).macs
        assert costs.separable_reduction(kernel, chans) == pytest.approx(dense / separable, rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(SIZES, KERNELS, st.integers(1, 5))
def test_padding_of_tensorflow(size: tuple[int, int], kernel: int, stride: int) -> None:
    """Equal to the peer implementation: ceil(size / stride) windows, also for kernels smaller than the stride."""
    x = torch.arange(1.0, 1 + size[0] * size[1]).reshape(1, 1, *size)
    padded = pad_same(x, kernel, stride)
    assert padded.equal(PEER.pad_same(x, [kernel, kernel], [stride, stride]))
    conv = ConvNormAct(1, 2, kernel, stride, padding="same")
    assert conv(x).shape == (1, 2, -(-size[0] // stride), -(-size[1] // stride))
    expected = F.conv2d(padded if stride > 1 else F.pad(x, [kernel // 2] * 4), conv.conv.weight, stride=stride)
    assert torch.allclose(conv.conv(padded) if conv.same else conv.conv(x), expected)


def test_padding_is_asymmetric_at_even_sizes() -> None:
    """Computed by hand: with kernel 3 and stride 2, 4 pixels need one zero at the end, 5 pixels one on each side."""
    ones = torch.ones(1, 1, 4, 5)
    assert pad_same(ones, 3, 2)[0, 0, :, 2].tolist() == [1, 1, 1, 1, 0]
    assert pad_same(ones, 3, 2)[0, 0, 0].tolist() == [0, 1, 1, 1, 1, 1, 0]


@settings(deadline=None)
@given(st.floats(0.1, 4000), st.sampled_from((4, 8, 16)))
def test_divisible_widths(width: float, divisor: int) -> None:
    result = make_divisible(width, divisor)
    assert result % divisor == 0
    assert result >= max(divisor, 0.9 * width)
    assert result - width <= divisor
    assert result == PEER.make_divisible(width, divisor)


def test_conventions_reach_every_convolution() -> None:
    model = create_model("efficientnet_b0", num_classes=3)
    set_convention(model, norm_eps=0.02, norm_momentum=0.3, padding="same")
    convs = [part for part in model.modules() if isinstance(part, ConvNormAct)]
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    assert len(convs) == len(norms) > 40
    assert {(norm.eps, norm.momentum) for norm in norms} == {(0.02, 0.3)}
    assert {conv.conv.padding for conv in convs if conv.conv.stride == (2, 2)} == {(0, 0)}
    set_convention(model, padding="symmetric")
    assert {(norm.eps, norm.momentum) for norm in norms} == {(0.02, 0.3)}
    assert {conv.conv.padding for conv in convs if conv.conv.kernel_size == (5, 5)} == {(2, 2)}
    with pytest.raises(ConfigError, match="did you mean 'same'"):
        set_convention(model, padding="sama")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="norm_momentum=2 is out of range: give 0 to 1"):
        set_convention(model, norm_momentum=2)
    with pytest.raises(ConfigError, match="norm_eps=-1 is out of range: give 0 or more"):
        set_convention(model, norm_eps=-1)


def test_the_input_is_added_only_where_it_fits() -> None:
    for build in (DepthwiseSeparableConv, InvertedResidual, FusedInvertedResidual):
        assert build(4, 4).residual
        assert not build(4, 4, 2).residual
        assert not build(4, 6).residual


def test_squeeze_and_excitation_by_hand() -> None:
    x = torch.tensor([[1.0, 3.0], [2.0, 2.0]]).reshape(1, 1, 2, 2).repeat(1, 2, 1, 1)
    block = SqueezeExcite(2, 1, gate=nn.Hardsigmoid)
    with torch.no_grad():
        for conv, weight, bias in ((block.reduce, 0.5, 1.0), (block.expand, 1.0, -2.0)):
            conv.weight.fill_(weight)
            conv.bias.fill_(bias)  # pyright: ignore[reportOptionalMemberAccess]
    # mean 2 of both channels -> 0.5 * 2 + 0.5 * 2 + 1 = 3 -> 3 - 2 = 1 -> (1 + 3) / 6
    assert torch.allclose(block(x), x * 4 / 6)


def test_dropped_blocks_leave_the_input() -> None:
    """With a high rate a residual block in training is mostly the identity; a strided block is never dropped."""
    torch.manual_seed(0)
    x = torch.randn(64, 4, 8, 8)
    for build in (DepthwiseSeparableConv, InvertedResidual):
        block = build(4, 4, drop_path=0.9)
        assert isinstance(block.drop_path, DropPath)
        active = (block(x) != x).flatten(1).any(1).sum().item()
        assert 0 < active < 20
        strided = build(4, 4, 2, drop_path=0.9)
        assert (strided(x) != 0).flatten(1).any(1).all()
        assert (block.eval()(x) != x).flatten(1).any(1).all()


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, float("nan")])
def test_rates_that_drop_everything_are_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match=r"drop path rate .*: give 0 to below 1"):
        DropPath(rate)
