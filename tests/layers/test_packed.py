"""Packed layers compute what the plain ones do for any size, and step aside where their operators do not apply."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import foveal
from foveal.factory.create import create_model
from foveal.layers import optimize as optimising
from foveal.layers import packed
from foveal.layers.attention import Attention
from foveal.layers.conv import ConvNormAct, InvertedResidual, SqueezeExcite
from foveal.layers.linear_attention import MultiScaleLinearAttention
from foveal.layers.mlp import Mlp
from foveal.layers.packed import PackedConv2d, PackedLinear
from helpers import golden
from helpers.narrow import narrow

pytestmark = pytest.mark.skipif(bool(packed.missing_operators()), reason="this torch has no operators for oneDNN")

ACTIVATIONS = [
    nn.Identity(), nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-0.3, 0.7), nn.LeakyReLU(0.3), nn.GELU(), nn.GELU("tanh"),
    nn.Hardswish(), nn.SiLU(), nn.Sigmoid(), nn.Hardsigmoid(), nn.Tanh(),
]  # fmt: skip


@pytest.fixture(params=["AVX2", "AVX512"])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both choices of library, on any processor: the operators run on all of them."""
    wide = request.param == "AVX512"
    monkeypatch.setattr(optimising, "prefers_rows", lambda: not wide)
    monkeypatch.setattr(optimising, "prefers_packed_linears", lambda: wide)
    return request.param


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference relative to the largest expected value."""
    return float((found.double() - expected.double()).abs().max() / expected.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("act", ACTIVATIONS, ids=str)
def test_every_activation(act: nn.Module) -> None:
    """In the epilogue of a convolution and of a linear layer, and in place after a product of rows."""
    pointwise, dense, linear = nn.Conv2d(5, 7, 1), nn.Conv2d(5, 7, 3, 2, 1), nn.Linear(6, 9)
    x = 3 * torch.randn(2, 5, 11, 6)
    layers = [PackedConv2d(pointwise, act, rows=True), PackedConv2d(pointwise, act), PackedConv2d(dense, act)]
    for layer, plain in zip(layers, (pointwise, pointwise, dense), strict=True):
        assert difference(layer(x), act(plain.double()(x.double()))) < 2e-6
        plain.float()
    assert difference(PackedLinear(linear, act)(x), act(linear.double()(x.double()))) < 2e-6


@torch.no_grad()
def test_any_geometry_and_size() -> None:
    """Kernels, strides, paddings, dilations and groups; the weight packed for the first size computes the others."""
    for kernel, stride, pad, dilation, groups in (
        (1, 1, 0, 1, 1), (1, 2, 0, 1, 1), (1, 1, 1, 1, 1), (1, 1, 0, 1, 4), (3, 1, 1, 1, 8), (5, 2, 2, 1, 8),
        ((3, 1), (1, 2), (1, 0), 1, 1), (3, 1, 2, 2, 2), (2, 2, 0, 1, 1),
    ):  # fmt: skip
        conv = nn.Conv2d(8, 16, kernel, stride, pad, dilation, groups, bias=groups == 1)
        layer = PackedConv2d(conv, nn.Hardswish(), rows=True)
        for shape in ((1, 8, 7, 9), (3, 8, 20, 6), (1, 8, 5, 5), (2, 8, 64, 40)):
            x = torch.randn(shape)
            x = x.transpose(2, 3) if shape[0] == 3 else x
            assert difference(layer(x), F.hardswish(conv(x))) < 2e-6, (kernel, shape)


@torch.no_grad()
def test_impossible_inputs_have_the_errors_of_torch() -> None:
    layer = PackedConv2d(nn.Conv2d(4, 8, 3), nn.ReLU())
    for shape in ((1, 3, 9, 9), (1, 4, 2, 9), (4, 9)):
        with pytest.raises(RuntimeError) as expected:
            F.conv2d(torch.randn(shape), layer.weight, layer.bias)
        with pytest.raises(RuntimeError) as found:
            layer(torch.randn(shape))
        assert str(found.value) == str(expected.value)
    assert layer(torch.randn(0, 4, 9, 9)).shape == (0, 8, 7, 7)
    assert layer(torch.randn(4, 9, 9)).shape == (8, 7, 7)


def test_gradients_dtypes_and_tracing_take_the_plain_layer() -> None:
    conv, linear = nn.Conv2d(4, 8, 3, padding=1), nn.Linear(6, 5)
    layers: list[nn.Module] = [PackedConv2d(conv, nn.ReLU()), PackedLinear(linear, nn.ReLU())]
    for layer, plain in zip(layers, (conv, linear), strict=True):
        layer.requires_grad_(False)
        x = torch.randn(2, 4, 8, 6, requires_grad=True)
        (layer(x) * layer(x.detach())).sum().backward()
        assert x.grad is not None
        with torch.no_grad():
            expected = plain(x).relu()
            exported = torch.export.export(layer, (x.detach(),))
            assert not any("mkldnn" in str(node.target) for node in exported.graph.nodes)
            assert difference(torch.compile(layer, backend="eager", fullgraph=True)(x), expected) < 2e-6
            with torch.autocast("cpu", torch.bfloat16):
                assert layer(x).dtype == torch.bfloat16
            assert layer.double()(x.double()).dtype == torch.float64
            assert difference(layer.float()(x), expected) < 2e-6


@torch.no_grad()
def test_copies_pickles_and_new_weights() -> None:
    """A packed weight is neither copied nor saved, and is packed again after weights were loaded."""
    conv, linear = nn.Conv2d(4, 8, 3), nn.Linear(6, 5)
    for plain, layer in ((conv, PackedConv2d(conv, nn.ReLU())), (linear, PackedLinear(linear, nn.ReLU()))):
        x = torch.randn(2, 4, 8, 6)
        expected = layer(x)
        assert torch.equal(copy.deepcopy(layer)(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(layer))(x), expected)
        buffer = io.BytesIO()
        torch.save(layer, buffer)
        assert set(layer.state_dict()) == set(plain.state_dict())
        layer.load_state_dict({key: -value for key, value in layer.state_dict().items()})
        assert difference(layer(x), plain(x).relu()) < 2e-6


@torch.no_grad()
def test_attention_on_channels_last_maps(processor: str) -> None:
    """No further scale or two, batches and odd sizes, with weights as large as in training."""
    torch.manual_seed(0)
    for scales, batch in (((), 1), ((5,), 2), ((3, 5), 1)):
        layer = golden.fill(MultiScaleLinearAttention(16, 24, head_dim=8, scales=scales)).eval()
        fast = foveal.optimize(nn.Sequential(layer))
        for size in ((1, 1), (7, 9), (20, 12)):
            x = torch.randn(batch, 16, *size)
            expected = copy.deepcopy(layer).double()(x.double())
            assert difference(fast(x), expected) < 3e-6, (processor, scales, size)


@torch.no_grad()
@pytest.mark.parametrize("task", ["classify", "segment"])
def test_a_model_at_several_sizes(task: str, processor: str) -> None:
    model = golden.fill(narrow(task), 0.7)
    fast = foveal.optimize(model)
    for size in ((64, 64), (33, 97), (128, 32), (64, 64)):
        x = torch.randn(2, 3, *size)
        assert difference(fast(x), model(x)) < 1e-5, (size, processor)
    assert {type(layer) for layer in fast.modules()} & {nn.Conv2d, nn.BatchNorm2d} == set()


@torch.no_grad()
def test_blocks_of_other_families(processor: str) -> None:
    """Squeeze and excitation, MLPs, softmax attention, layers that read the sizes of their linear layers."""
    squeezed = InvertedResidual(8, 8, act=nn.Hardswish, squeeze=lambda channels: SqueezeExcite(channels, 4))
    for block, shape in ((squeezed, (2, 8, 9, 7)), (Mlp(12, 24), (2, 9, 12)), (Attention(12, 3, 1), (2, 9, 12))):
        model = golden.fill(nn.Sequential(block)).eval()
        fast, x = foveal.optimize(model), torch.randn(shape)
        assert difference(fast(x), model(x)) < 5e-6
        linears = [layer for layer in fast.modules() if isinstance(layer, nn.Linear)]
        assert all(isinstance(layer, PackedLinear) == (processor == "AVX512") for layer in linears)


@torch.no_grad()
def test_a_layer_in_two_places_and_a_layer_with_a_hook() -> None:
    """A convolution that is followed by an activation in one of two places; a hook stays where it is."""
    shared, hooked, seen = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), []
    hooked.register_forward_hook(lambda *_: seen.append(1))
    model = nn.Sequential(nn.Sequential(shared, nn.ReLU()), nn.Sequential(shared, nn.Tanh()), shared, hooked, nn.ReLU())
    fast, x = foveal.optimize(model), torch.randn(1, 4, 6, 6)
    assert difference(fast(x), model(x)) < 2e-6
    assert len(seen) == 2


def explained(fast: Any) -> str:
    """The explanation of an optimised model."""
    return fast.explain()


def test_explanation(processor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names every kind of layer with weights, with the reason where one was left; the model can be copied."""
    model = narrow()
    text = explained(copy.deepcopy(foveal.optimize(model)))
    assert text.startswith("optimised for float32 on cpu\n")
    assert "packed for oneDNN with Hardswish" in text
    assert ("1x1, as a product of matrices by MKL" in text) == (processor == "AVX2")
    assert ("left: torch's own is as fast on this processor" in text) == (processor == "AVX2")
    assert "each scale on its own, no concatenation" in text
    assert "folded into the layer beside it" in text
    assert "LayerNorm" in text
    wide = foveal.optimize(model.double())
    assert "left: packed layers are for float32, not for float64" in explained(wide)
    assert not any(isinstance(layer, PackedConv2d | PackedLinear) for layer in wide.modules())
    assert "not for meta" in explained(foveal.optimize(model.float().to("meta")))
    monkeypatch.setattr(optimising, "missing_operators", lambda: "this torch has no operator mkldnn._something")
    assert "left: this torch has no operator mkldnn._something" in explained(foveal.optimize(narrow()))
    assert "without running statistics" not in text
    kept = foveal.optimize(nn.Sequential(ConvNormAct(3, 4), nn.BatchNorm2d(4, track_running_stats=False)))
    assert "left: no running statistics" in explained(kept)


def test_without_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_OPERATORS", ("_no_such_operator",))
    assert packed.missing_operators() == "this torch has no operator mkldnn._no_such_operator"
    fast = foveal.optimize(narrow())
    assert "left: this torch has no operator mkldnn._no_such_operator" in explained(fast)


@torch.no_grad()
@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["efficientvit_b1", "efficientvit_l0", "efficientvit_m1", "mobilenetv3_small_100", "mambavision_t"]
)
def test_real_architectures(name: str, processor: str) -> None:
    model = golden.fill(create_model(name), 0.7).eval()
    fast, x = foveal.optimize(model), golden.image_input((1, 3, 96, 160)).float()
    assert difference(fast(x), model(x)) < 1e-5, processor


@torch.no_grad()
def test_bundled_weights_are_as_exact_as_before(processor: str) -> None:
    """Trained weights amplify rounding to 1e-5 in the plain model too, so both are compared with float64."""
    model = foveal.load_model("efficientvit_b0.camvid").eval()
    fast = foveal.optimize(model)
    for seed in range(2):
        x = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(seed))
        plain, output = model(x), fast(x)
        exact = model.double()(x.double())
        model.float()
        assert difference(output, exact) < max(2 * difference(plain, exact), 1e-5), processor
