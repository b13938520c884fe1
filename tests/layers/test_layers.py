"""Layers that families share: equal to published ones, exact where documented as exact, and stable in 16 bits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from foveal.layers.conv import (
    ConvNormAct,
    DepthwiseSeparableConv,
    FusedInvertedResidual,
    InvertedResidual,
    LayerNorm2d,
    ResidualConv,
)
from foveal.layers.efficientvit_block import EfficientViTBlock
from foveal.layers.linear_attention import MultiScaleLinearAttention, linear_attention
from foveal.layers.recompute import recompute
from foveal.layers.resample import BicubicUpsample, pad_to_multiple
from foveal.models.efficientvit import BLOCK_NAMES
from foveal.models.renaming import rename_key
from helpers import golden

GELU = partial(nn.GELU, approximate="tanh")
LITE = partial(MultiScaleLinearAttention, 32, head_dim=8)
#: Reference layer -> ours.
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "litemla_linear_5": LITE,
    "litemla_linear_3": partial(MultiScaleLinearAttention, 64, head_dim=32, scales=(3,)),
    "litemla_linear_two_scales": partial(LITE, scales=(3, 5)),
    "litemla_quadratic": LITE,  # as many positions as channels per head: the authors compute the n x n form there
    "litemla_tiny_eps": LITE,  # sums near the official epsilon
    "efficientvit_block_b": partial(EfficientViTBlock, 32, head_dim=16),
    "efficientvit_block_l": partial(EfficientViTBlock, 64, head_dim=32, expand_ratio=6, act=GELU, norm_eps=1e-7),
    "dsconv": partial(DepthwiseSeparableConv, 16, 24, act=nn.Hardswish),
    "mbconv_s2_fewer_norm": partial(InvertedResidual, 16, 32, 2, act=nn.Hardswish, fewer_norm=True),
    "fusedmbconv_s2": partial(FusedInvertedResidual, 16, 32, 2, expand_ratio=16, act=GELU, norm_eps=1e-7),
    "resblock": partial(ResidualConv, 16, 16, act=GELU, norm_eps=1e-7, residual=False),
    "layernorm2d": partial(LayerNorm2d, 24),
    "upsample_bicubic_x2": lambda: nn.Sequential(nn.Conv2d(8, 8, 1), BicubicUpsample(2)),
    "upsample_bicubic_x4": lambda: nn.Sequential(nn.Conv2d(8, 8, 1), BicubicUpsample(4)),
}


def our_key(key: str) -> str:
    return rename_key(f"block.{key}", BLOCK_NAMES).removeprefix("block.")


@torch.no_grad()
@pytest.mark.parametrize("name", LAYERS)
def test_equals_the_published_layer(name: str) -> None:
    """The outputs of the authors' layer from their state dict: within 1e-9 in float64, 1e-5 in float32."""
    expected = golden.read("efficientvit_layers")[name]
    state = {our_key(key): tensor for key, tensor in golden.state(expected["state"]).items()}
    if name == "litemla_tiny_eps":
        state["qkv.weight"] *= 1e-7
    layer = LAYERS[name]().double().eval()
    layer.load_state_dict(state)
    x = golden.normal_input(expected["input"])
    assert golden.difference(layer(x.double()), expected["float64"]) <= 1e-9
    assert golden.difference(layer.float()(x), expected["float32"]) <= 1e-5


@pytest.mark.parametrize("kind", ["linear", "quadratic"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 2e-3), ("bfloat16", 2e-2)])
def test_attention_in_16_bits_is_as_good_as_the_published_one(kind: str, dtype: str, tolerance: float) -> None:
    """In 16 bits the result is within the rounding of the type of the authors' result in that type."""
    expected = golden.read("efficientvit_layers")["attention_dtype_rule"][f"relu_{kind}_att_{dtype}"]
    batch, channels, height, width = expected["shape"]
    qkv = golden.normal_input((batch, 3 * channels, height, width)).to(getattr(torch, dtype))
    q, k, v = qkv.reshape(batch, channels // 8, 24, -1).transpose(-2, -1).split(8, dim=-1)
    output = linear_attention(q, k, v).transpose(-2, -1).reshape(expected["shape"])
    assert output.dtype == qkv.dtype
    assert golden.difference(output, expected) <= tolerance


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
def test_linear_attention_equals_the_explicit_form(n: int, m: int, d: int, e: int, seed: int) -> None:
    """Equal to an explicit n x m matrix of normalised weights, for any numbers of queries and keys."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, 3, *shape, generator=generator).double() for shape in ((n, d), (m, d), (m, e)))
    affinity = F.relu(q) @ F.relu(k).transpose(-2, -1)  # (2, 3, n, m)
    expected = affinity / (affinity.sum(-1, keepdim=True) + 1e-15) @ v
    output = linear_attention(q, k, v)
    assert output.shape == (2, 3, n, e)
    assert (output - expected).abs().max() <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_query_without_features_gives_zero(dtype: torch.dtype) -> None:
    """If relu(q) is all zeros the result is 0, not 0 / 0, for any epsilon; the same for keys that are all zeros."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 500, 16).to(dtype)
    q[0, 17] = -1
    output = linear_attention(q, k, v)
    assert output.isfinite().all()
    assert not output[0, 17].any()
    assert not linear_attention(q, -k.abs(), v).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sigma", [1e-3, 1.0, 4.0, 64.0])
def test_16_bits_neither_overflow_nor_vanish(dtype: torch.dtype, sigma: float) -> None:
    """At 32768 positions, where float16 sums overflow from sigma 1 on, the error is only the rounding of the result."""
    torch.manual_seed(0)
    q, k, v = (sigma * torch.randn(3, 2, 32768, 16)).to(dtype)
    v = v + sigma  # values with a common sign add up instead of cancelling
    q[:, ::1000] = 0
    output, exact = linear_attention(q, k, v), linear_attention(q.double(), k.double(), v.double())
    assert output.isfinite().all()
    assert (output.double() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()


class _ConvertedToFloat16(TorchDispatchMode):
    """Round the result of every operation to float16, as a runtime does that converts a float32 graph."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result.half().float() if isinstance(result, Tensor) else result


def test_float32_graph_converted_to_float16_does_not_overflow() -> None:
    """An exported graph converted to float16 does not overflow at 32768 positions, because keys are scaled."""
    torch.manual_seed(0)
    q, k, v = (2 * torch.randn(3, 2, 32768, 16)).half().float()
    q[..., 0] = q[..., 0].abs()  # converters raise the epsilon to what float16 holds; here no query needs it
    with _ConvertedToFloat16():
        output = linear_attention(q, k, v)
    expected = linear_attention(q, k, v)
    assert output.isfinite().all()
    assert (output - expected).abs().max() <= 5e-3 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gradients_are_those_of_float64(dtype: torch.dtype) -> None:
    """Also for a query whose features are all zero: its gradient contains 1 / eps, which overflows float16."""
    torch.manual_seed(0)
    leaves = (2 * torch.randn(3, 2, 500, 16)).to(dtype)
    leaves[0, :, 17] = -1
    gradients = {}
    for kind in (dtype, torch.float64):
        inputs = [x.to(kind).requires_grad_() for x in leaves]
        out = linear_attention(*inputs)
        gradients[kind] = torch.autograd.grad(out, inputs, torch.linspace(1, 2, 16).to(kind).expand_as(out))
    for output, exact in zip(gradients[dtype], gradients[torch.float64], strict=True):
        assert (output.double() - exact).abs().max() <= max(torch.finfo(dtype).eps, 1e-5) * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [1e-15, 1e-5])
def test_scaling_of_keys_is_exact(dtype: torch.dtype, eps: float) -> None:
    """Bit-equal to the plain formula, also for sums of the size of epsilon: keys and epsilon have the same scale."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 300, 16, dtype=dtype)
    q *= torch.logspace(-20, 0, 300, dtype=dtype)[:, None]
    x, y = q.relu(), k.relu()
    plain = x @ (y.transpose(-2, -1) @ v) / (x @ y.sum(-2, keepdim=True).transpose(-2, -1) + eps)
    assert torch.equal(linear_attention(q, k, v, eps=eps), plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_leaves_attention_alone(dtype: torch.dtype) -> None:
    """Under autocast, float32 attention is not computed in 16 bits."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 64, 8)
    with torch.autocast("cpu", dtype=dtype):
        output = linear_attention(q, k, v)
    assert torch.equal(output, linear_attention(q, k, v))


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(2, 3, 7, 5), (1, 1, 1, 1), (1, 4, 2, 30)])
def test_bicubic_upsampling_is_exact(factor: int, shape: tuple[int, ...]) -> None:
    """A convolution, yet what F.interpolate computes in float64: float64 1e-12, float32 1e-6 of the largest value.

    (In float32, F.interpolate itself is further off: it rounds positions at the factor 3.)
    """
    torch.manual_seed(0)
    x = torch.randn(shape)
    expected = F.interpolate(x.double(), scale_factor=factor, mode="bicubic", align_corners=False)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        output = BicubicUpsample(factor).to(dtype)(x.to(dtype))
        assert output.dtype == dtype
        assert output.shape == expected.shape
        assert (output - expected).abs().max() <= tolerance * x.abs().max()


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_bicubic_upsampling_stays_exact_after_other_types(factor: int) -> None:
    """After a conversion to float16 and back, float64 is exact again: the kernel is not a weight that loses digits."""
    x = torch.randn(1, 2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(x, scale_factor=factor, mode="bicubic", align_corners=False)
    output = BicubicUpsample(factor).half().double()(x)
    assert (output - expected).abs().max() <= 1e-12 * x.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_bicubic_upsampling_in_16_bits(dtype: torch.dtype, factor: int) -> None:
    """It runs in 16 bits with an error of a few roundings of the type."""
    x = torch.randn(1, 2, 6, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = F.interpolate(x.double(), scale_factor=factor, mode="bicubic", align_corners=False)
    output = BicubicUpsample(factor).to(dtype)(x)
    assert output.dtype == dtype
    assert (output.double() - expected).abs().max() <= 4 * torch.finfo(dtype).eps * x.abs().max()


def test_bicubic_kernel_is_not_in_checkpoints() -> None:
    """The kernel is a constant and not in the state dict."""
    assert not BicubicUpsample(2).state_dict()


@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([1, 8, 32]))
def test_padding_to_a_multiple(height: int, width: int, multiple: int) -> None:
    """The smallest multiple; the image is unchanged at the top left and its edge is repeated beyond it."""
    x = torch.arange(2 * height * width, dtype=torch.float32).reshape(1, 2, height, width)
    output = pad_to_multiple(x, multiple)
    high, wide = output.shape[-2:]
    assert high % multiple == wide % multiple == 0
    assert 0 <= high - height < multiple
    assert 0 <= wide - width < multiple
    rows, columns = torch.arange(high).clamp(max=height - 1), torch.arange(wide).clamp(max=width - 1)
    assert torch.equal(output, x[..., rows[:, None], columns])


def test_layer_norm_equals_torch() -> None:
    """Over the channels of each position, equal to F.layer_norm with channels last."""
    torch.manual_seed(0)
    layer = LayerNorm2d(6)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    x = torch.randn(2, 6, 4, 5) * 30 + 7
    expected = F.layer_norm(x.permute(0, 2, 3, 1), (6,), layer.weight, layer.bias, layer.eps).permute(0, 3, 1, 2)
    assert torch.allclose(layer(x), expected, atol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
def test_layer_norm_of_large_float16_values(autocast: bool) -> None:
    """The square of 300 overflows float16; the norm of maps with such values does not, in float16 or under autocast."""
    x = 300 * torch.randn(1, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    layer = LayerNorm2d(8)
    with torch.autocast("cpu", torch.float16, enabled=autocast):
        output = (layer if autocast else copy.deepcopy(layer).half())(x.half())
    assert output.dtype == torch.float16
    assert (output.float() - layer(x)).abs().max() <= 5e-3


def _blocks(cls: type[nn.Module], in_chans: int, out_chans: int, stride: int, residual: bool) -> nn.Module:
    torch.manual_seed(0)
    return cls(in_chans, out_chans, stride, residual=residual).eval()


@torch.no_grad()
@pytest.mark.parametrize("cls", [DepthwiseSeparableConv, InvertedResidual, FusedInvertedResidual, ResidualConv])
def test_residual_only_where_shapes_allow(cls: type[nn.Module]) -> None:
    """The input is added at stride 1 with equal widths, except with residual=False; strides round sizes up."""
    x = torch.randn(1, 8, 9, 7)
    assert torch.allclose(_blocks(cls, 8, 8, 1, True)(x), x + _blocks(cls, 8, 8, 1, False)(x), atol=1e-6)
    for out_chans, stride in ((8, 2), (12, 1)):
        expected = _blocks(cls, 8, out_chans, stride, False)(x)
        assert expected.shape == (1, out_chans, -(-9 // stride), -(-7 // stride))
        assert torch.equal(_blocks(cls, 8, out_chans, stride, True)(x), expected)


def test_convolution_has_a_bias_where_no_norm_follows() -> None:
    def keys(**options: Any) -> set[str]:
        return set(ConvNormAct(3, 4, **options).state_dict())

    norm = {f"norm.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
    assert keys() == {"conv.weight"} | norm
    assert keys(norm=False) == {"conv.weight", "conv.bias"}
    assert keys(bias=True) == {"conv.weight", "conv.bias"} | norm


def test_attention_heads_do_not_mix_before_the_projection() -> None:
    """If the values of one head are zero, exactly its channels of the concatenated heads are zero."""
    torch.manual_seed(0)
    layer = MultiScaleLinearAttention(12, head_dim=4, scales=())
    layer.project = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad():
        layer.qkv.weight[12 + 8 : 12 + 12] = 0  # second head: channels 12..23 are its q, k, v
        output: Tensor = layer(torch.randn(1, 12, 5, 6))
    assert (output.abs().sum((0, 2, 3)) > 0).tolist() == [True] * 4 + [False] * 4 + [True] * 4


def test_a_copy_of_recomputed_blocks_has_norms_of_its_own() -> None:
    """A step of the copy updates its running statistics once, and nothing of the original."""
    torch.manual_seed(0)
    original = nn.Sequential(ConvNormAct(3, 4), ConvNormAct(4, 4))
    plain = copy.deepcopy(original)
    recompute(original)
    copied = copy.deepcopy(original)
    before = copy.deepcopy(original.state_dict())
    x = torch.randn(2, 3, 8, 8)
    for model in (plain, copied):
        model(x).square().mean().backward()
    for (name, expected), found in zip(plain.named_buffers(), copied.buffers(), strict=True):
        assert torch.equal(found, expected), name
    assert all(torch.equal(value, before[key]) for key, value in original.state_dict().items())
    assert all(p.grad is None for p in original.parameters())
    assert all(p.grad is not None for p in copied.parameters())
