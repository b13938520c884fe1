"""MobileNetV2 and V3: reference outputs, published checkpoints of two libraries, and the rules of every backbone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from foveal.errors import CheckpointError, ConfigError
from foveal.exporting.export import export
from foveal.factory.create import create_model, list_models
from foveal.factory.identify import identify
from foveal.info import ModelInfo, attach, info_of
from foveal.layers.conv import ConvNormAct
from foveal.layers.drop_path import DropPath
from foveal.measuring.costs import count
from foveal.prediction.exported import NetworkRunner
from foveal.prediction.onnx_runner import onnx_network
from foveal.weights.loading import load_checkpoint
from helpers import golden
from helpers.convnets import check_golden, check_peer, conventions, filled, peer

#: torchvision's name of ours.
TORCHVISION = {
    "mobilenetv2_100": "mobilenet_v2",
    "mobilenetv3_small_100": "mobilenet_v3_small",
    "mobilenetv3_large_100": "mobilenet_v3_large",
}
NAMES = list(TORCHVISION)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("torchvision/mobilenet_v2", "mobilenetv2_100"),
        ("torchvision/mobilenet_v3_small", "mobilenetv3_small_100"),
        ("timm/mobilenetv3_large_100", "mobilenetv3_large_100"),
    ],
)
def test_reference_outputs(source: str, name: str) -> None:
    check_golden(source, name)


@pytest.mark.parametrize("name", NAMES)
def test_torchvision_itself(name: str) -> None:
    check_peer("torchvision", TORCHVISION[name], name, 1.2)


@pytest.mark.parametrize("name", [*NAMES, "tf_mobilenetv3_small_100", "tf_mobilenetv3_large_100"])
def test_timm_itself(name: str) -> None:
    check_peer("timm", name, name, 1.2)
    check_peer("timm", name, name, 1.2, (64, 96))


def test_published_costs() -> None:
    figures = {
        "mobilenetv2_100": (3_504_872, "0.301"),
        "mobilenetv3_large_100": (5_483_032, "0.217"),
        "mobilenetv3_small_100": (2_542_856, "0.057"),
    }
    for name, (params, macs) in figures.items():
        with torch.device("meta"):
            result = count(create_model(name).eval(), 3, (224, 224))
        assert (result.params, f"{result.macs / 1e9:.3f}") == (params, macs)


def test_files_bring_their_conventions() -> None:
    """torchvision's V3 has another epsilon and momentum than timm's: inferred from keys, unless options set them."""
    theirs = filled(peer("torchvision", "mobilenet_v3_small"), 1.0)
    result = identify(theirs)
    assert (result.model, result.options) == ("mobilenetv3_small_100", {"norm_eps": 1e-3, "norm_momentum": 0.01})
    assert result.labels.names[:2] == ("tench", "goldfish")
    model = create_model("mobilenetv3_small_100", num_classes=1000)
    assert conventions(model) == {(1e-5, 0.1)}
    load_checkpoint(model, theirs)
    assert conventions(model) == {(1e-3, 0.01)}
    assert info_of(model).options["norm_eps"] == 1e-3
    again = create_model("mobilenetv3_small_100", **info_of(model).options)
    assert conventions(again) == {(1e-3, 0.01)}
    mine = create_model("mobilenetv3_small_100", norm_eps=0.5)
    load_checkpoint(mine, theirs)
    assert conventions(mine) == {(0.5, 0.01)}
    assert identify(filled(peer("torchvision", "mobilenet_v2"), 1.0)).options == {}


def test_a_part_of_a_model_takes_the_conventions_of_a_file() -> None:
    theirs = filled(peer("torchvision", "mobilenet_v3_small"), 1.0)
    model: Any = create_model("mobilenetv3_small_100")
    load_checkpoint(model.backbone, theirs)
    assert conventions(model.backbone) == {(1e-3, 0.01)}


def test_a_file_that_may_need_tensorflows_padding_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with torch.device("meta"):
        state = timm.create_model("tf_mobilenetv3_small_100").state_dict()
    assert identify(state).model == "mobilenetv3_small_100"
    assert "create_model('tf_mobilenetv3_small_100', weights=...)" in capsys.readouterr().err


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_parts_of_files(library: str) -> None:
    """Without classifier, with other channels and classes, wrapped; a missing key is named and nothing is loaded."""
    theirs = "mobilenetv3_large_100" if library == "timm" else "mobilenet_v3_large"
    state = filled(peer(library, theirs), 1.0)
    last = "classifier" if library == "timm" else "classifier.3"
    stem = "conv_stem.weight" if library == "timm" else "features.0.0.weight"
    pooled = {key: value for key, value in state.items() if not key.startswith(f"{last}.")}
    load_checkpoint(create_model("mobilenetv3_large_100", num_classes=0), pooled)
    net = create_model("mobilenetv3_large_100", features_only=True)
    assert len(load_checkpoint(net, {f"module.{k}": v for k, v in state.items()}).ignored) == 4
    small = {**state, f"{last}.weight": torch.zeros(7, 1280), f"{last}.bias": torch.zeros(7)}
    small[stem] = torch.zeros(16, 5, 3, 3)
    load_checkpoint(create_model("mobilenetv3_large_100", num_classes=7, in_chans=5), small)
    assert identify(small).num_classes == 7
    assert identify(small).in_chans == 5
    missing = next(key for key in state if key.endswith("running_var"))
    model = create_model("mobilenetv3_large_100")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError, match=r"1 missing: backbone\.stem\.0\.norm\.running_var"):
        load_checkpoint(model, {key: value for key, value in state.items() if key != missing})
    with pytest.raises(CheckpointError, match="not recognised"):
        load_checkpoint(model, {**state, "blocks.0.0.adapter.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="of another shape"):
        load_checkpoint(model, {**state, missing: torch.zeros(3)})
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["mobilenetv2_100", "tf_mobilenetv2_100", "mobilenetv3_small_100"])
def test_sizes_channels_types(name: str) -> None:
    """Strides and channels at odd and minimum sizes; float64, bfloat16, channels_last and copies agree."""
    net = golden.fill(create_model(name, features_only=True, in_chans=4).double())
    for h, w in ((32, 32), (33, 71)):
        maps = net(torch.randn(2, 4, h, w, dtype=torch.float64))
        assert [m.shape[1:] for m in maps] == [(c, -(-h // s), -(-w // s)) for c, s in net.feature_info]
    assert [info.stride for info in net.feature_info] == [4, 8, 16, 32]
    model = golden.fill(create_model(name, num_classes=5).double())
    x = golden.normal_input((2, 3, 61, 47)).double()
    with torch.no_grad():
        expected = model(x)
        scale = expected.abs().max()
        assert copy.deepcopy(model)(x).equal(expected)
        again = copy.deepcopy(model).to(memory_format=torch.channels_last)
        assert (again(x.to(memory_format=torch.channels_last)) - expected).abs().max() < 1e-9 * scale
        assert (copy.deepcopy(model).float()(x.float()) - expected).abs().max() < 1e-4 * scale
        half = copy.deepcopy(model).bfloat16()(x.bfloat16())
        assert half.dtype == torch.bfloat16
        assert half.isfinite().all()


def test_padding_of_tensorflow_in_a_file_for_any_size(tmp_path: Path) -> None:
    """Padding that depends on the size is part of the graph: even and odd sizes other than the traced one agree."""
    layers = [ConvNormAct(3, 8, 3, 2, padding="same"), ConvNormAct(8, 8, 5, 2, groups=8, padding="same")]
    model = golden.fill(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)))
    attach(model, ModelInfo("tf_mobilenetv3_small_100", "classify", 5))
    file = export(model, output=tmp_path / "net.onnx", size=(64, 96))
    runner = NetworkRunner(onnx_network(file.path))
    for shape in ((1, 3, 64, 64), (2, 3, 67, 98), (1, 3, 71, 129)):
        x = golden.normal_input(shape)
        with torch.no_grad():
            expected = model(x)
        assert (torch.from_numpy(runner(x.numpy())) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_padding_changes_outputs_and_only_there() -> None:
    """The same weights with ``tf_`` give another output; the padding differs only in the five strided layers."""
    plain, other = (create_model(f"{prefix}mobilenetv2_100", features_only=True) for prefix in ("", "tf_"))
    assert {p.conv.kernel_size for p in other.modules() if isinstance(p, ConvNormAct) and p.same} == {(3, 3)}
    assert sum(p.same for p in other.modules() if isinstance(p, ConvNormAct)) == 5
    for net in (plain, other):
        golden.fill(net)
    x = golden.normal_input((1, 3, 64, 64))
    with torch.no_grad():
        assert (plain(x)[-1] - other(x)[-1]).abs().max() > 1e-2 * plain(x)[-1].std()


def test_learning() -> None:
    """Every parameter of classifier and segmenter has a finite gradient; dropout is active only in training."""
    for task, shape in (("classify", (2,)), ("segment", (2, 64, 64))):
        model = create_model("mobilenetv3_small_100", task, num_classes=3)
        loss = nn.functional.cross_entropy(model(torch.randn(2, 3, 64, 64)), torch.zeros(shape, dtype=torch.long))
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model = create_model("mobilenetv2_100", dropout=0.5)
    head: Any = model.head
    x = torch.randn(1, 320, 2, 2)
    assert not head(x).equal(head(x))
    head.eval()
    assert head(x).equal(head(x))


def test_options_and_names() -> None:
    assert list_models("*mobilenet*") == [*NAMES, *(f"tf_{name}" for name in NAMES)]
    assert "mobilenetv3_large_100.ra_in1k" in list_models("mobilenet*", pretrained=True)
    with pytest.raises(ConfigError, match="did you mean 'norm_eps'"):
        create_model("mobilenetv2_100", norm_ep=1)
    with pytest.raises(ConfigError, match="unknown padding 'valid'"):
        create_model("mobilenetv2_100", padding="valid")
    with pytest.raises(ConfigError, match="cannot be built with these options: dropout probability"):
        create_model("mobilenetv3_small_100", dropout=1.5)
    with pytest.raises(ConfigError, match=r"drop path rate .*: give 0 to below 1"):
        create_model("efficientnet_b0", drop_path_rate=1.5)
    model = create_model("mobilenetv2_100", drop_path_rate=0.17)
    rates = [part.rate for part in model.modules() if isinstance(part, DropPath)]
    assert np.allclose(rates, [0.01 * i for i in range(17)])


@pytest.mark.parametrize("output_stride", [4, 8, 16])
def test_dilated_equals_strided_at_its_positions(output_stride: int) -> None:
    """Without squeeze and excitation, whose means are over other positions, every value of the strided maps stays."""
    strided: Any = create_model("mobilenetv2_100", features_only=True).double().eval()
    dilated: Any = create_model("mobilenetv2_100", features_only=True, output_stride=output_stride).double().eval()
    state = filled(strided, 1.2, torch.float64)
    for model in (strided, dilated):
        model.load_state_dict(state)
    x = torch.randn(1, 3, 71, 90, dtype=torch.float64)
    with torch.inference_mode():
        pairs = list(zip(strided(x), dilated(x), strict=True))
    for (sparse, dense), before, after in zip(pairs, strided.feature_info, dilated.feature_info, strict=True):
        assert after.stride == min(before.stride, output_stride)
        assert dense.shape[2:] == (-(-71 // after.stride), -(-90 // after.stride))
        step = before.stride // after.stride
        torch.testing.assert_close(dense[..., ::step, ::step], sparse, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["mobilenetv2_100", pytest.param("tf_efficientnet_b0", marks=pytest.mark.long)])
def test_output_stride_is_that_of_timm(name: str) -> None:
    theirs, ours = timm.create_model(name, output_stride=8).double().eval(), create_model(name, output_stride=8)
    state = filled(theirs, 1.2, torch.float64)
    theirs.load_state_dict(state)
    load_checkpoint(ours.double().eval(), state)
    x = torch.randn(1, 3, 65, 96, dtype=torch.float64)
    with torch.inference_mode():
        expected = theirs(x)
        assert (ours(x) - expected).abs().max() < 1e-9 * expected.std()
    assert info_of(ours).options["output_stride"] == 8
