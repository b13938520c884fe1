"""float16 files keep the masks: what float16 cannot hold is computed in float32, the rest takes half of the space."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn

import foveal
from foveal import assets
from foveal.engine.plan import load_plan
from foveal.exporting.graph import Graph, compare
from foveal.exporting.half import _without_weights, to_half
from foveal.exporting.half_weights import with_half_weights
from foveal.exporting.photograph import on_photograph
from foveal.info import ModelInfo, Preprocess
from foveal.prediction.predictor import Predictor
from helpers import golden
from helpers.narrow import Plain, narrow


def photo(width: int) -> NDArray[np.uint8]:
    """The bundled photograph, ``width`` pixels wide."""
    image = Image.open(assets.path("street", ".jpg")).convert("RGB")
    return np.asarray(image.resize((width, width * image.height // image.width)))


@pytest.mark.parametrize("name", ["efficientvit_b0.camvid", "efficientvit_b0.camvid_scratch"])
def test_masks_stay(name: str, tmp_path: Path) -> None:
    report = foveal.export(name, output=tmp_path, half=True)
    expected, found = foveal.load(assets.path(name, ".onnx"))(photo(480)), foveal.load(report.path)(photo(480))
    assert (found.mask == expected.mask).mean() >= 0.999
    assert np.abs(found.logits - expected.logits).max() <= 0.005 * np.abs(expected.logits).max()
    assert report.path.stat().st_size < 0.52 * assets.path(name, ".onnx").stat().st_size
    assert any(layer.endswith(".attention") for layer in report.kept_float)


@pytest.mark.parametrize("size", [(256, 512), (384, 384)])
@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_files_of_a_fixed_size_are_written(to: str, size: tuple[int, int], tmp_path: Path) -> None:
    """On noise of these sizes, the model itself answers by its rounding in some places; on photographs it does not."""
    pytest.importorskip(to)
    report = foveal.export("efficientvit_b0.camvid", to, output=tmp_path, half=True, input_size=size)
    assert report.max_difference < 0.005
    assert report.agreement >= 0.999


def test_upscaled_images_stay(tmp_path: Path) -> None:
    file = foveal.export("efficientvit_sr.x2", output=tmp_path, half=True).path
    expected, found = foveal.load("efficientvit_sr.x2", runtime="onnxruntime")(photo(96)), foveal.load(file)(photo(96))
    difference = found.image.astype(int) - expected.image
    assert np.abs(difference).max() <= 2
    assert (difference**2).mean() < 0.05  # 61 dB


def small_graph(nodes: list[onnx.NodeProto], shape: list[int | str], **constants: NDArray[np.float32]) -> bytes:
    """A graph with the input x and the output y."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "small",
        [value("x", TensorProto.FLOAT, shape)],
        [value("y", TensorProto.FLOAT, [f"y{axis}" for axis in range(len(shape))])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return model.SerializeToString()


def in_both_types(content: bytes, x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The output of a graph and of its conversion."""
    converted = onnx.load_from_string(content)
    to_half(converted)
    onnx.checker.check_model(converted, full_check=True)
    outputs = []
    for model in (content, converted.SerializeToString()):
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        outputs.append(np.asarray(session.run(None, {"x": x})[0]))
    return outputs[0], outputs[1]


def test_normalisers_have_the_range_of_float32() -> None:
    """Linear attention: the sum over positions exceeds 65504, and a query of zeros is divided by the epsilon."""
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["q"]),
        helper.make_node("Relu", ["q"], ["features"]),
        helper.make_node("Transpose", ["features"], ["keys"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["keys", "features"], ["context"]),
        helper.make_node("ReduceSum", ["features", "axis"], ["sums"], keepdims=1),
        helper.make_node("Transpose", ["sums"], ["norm"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["features", "context"], ["above"]),
        helper.make_node("MatMul", ["features", "norm"], ["below"]),
        helper.make_node("Add", ["below", "eps"], ["normaliser"]),
        helper.make_node("Div", ["above", "normaliser"], ["quotient"]),
        helper.make_node("MatMul", ["quotient", "weight"], ["y"]),
    ]
    x = 100 * np.random.default_rng(0).standard_normal((1, 1000, 4)).astype(np.float32)
    x[0, 0] = 0
    constants = {"weight": np.eye(4, dtype=np.float32), "eps": np.array(1e-15, np.float32)}
    content = small_graph(nodes, [1, "n", 4], axis=np.array([1]), **constants)
    expected, found = in_both_types(content, x)
    assert np.abs(expected).max() > 50
    assert np.abs(found - expected).max() <= 2e-3 * np.abs(expected).max()


def test_angles_have_the_precision_of_float32() -> None:
    """Encodings of points: in float16 a coordinate of 1000 is known to half a pixel, an angle of it to nothing."""
    nodes = [
        helper.make_node("MatMul", ["x", "frequencies"], ["angles"]),
        helper.make_node("Sin", ["angles"], ["sines"]),
        helper.make_node("MatMul", ["sines", "weight"], ["y"]),
    ]
    x = np.random.default_rng(0).uniform(0, 1024, (1, 50, 2)).astype(np.float32)
    constants = {"frequencies": np.full((2, 4), 0.37, np.float32), "weight": np.eye(4, dtype=np.float32)}
    expected, found = in_both_types(small_graph(nodes, [1, "n", 2], **constants), x)
    assert np.abs(found - expected).max() < 1e-3


def test_a_large_bias_does_not_hide_what_varies() -> None:
    """A depthwise convolution adds little to its bias; the next one takes the bias away and enlarges the rest."""
    rng = np.random.default_rng(0)
    project = 100 * np.eye(8, dtype=np.float32)[:, :, None, None]
    constants = {
        "depthwise": rng.uniform(0.01, 0.02, (8, 1, 3, 3)).astype(np.float32),
        "bias": np.full(8, 3, np.float32),
        "project": project,
        "shift": np.full(8, -300, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "depthwise", "bias"], ["wide"], group=8, pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["wide"], ["active"]),
        helper.make_node("Conv", ["active", "project", "shift"], ["y"]),
    ]
    x = rng.standard_normal((1, 8, 16, 16)).astype(np.float32)
    expected, found = in_both_types(small_graph(nodes, [1, 8, "h", "w"], **constants), x)
    assert np.abs(found - expected).max() <= 2e-3 * np.abs(expected).max()


def test_large_weights_of_a_layer_in_float32_are_stored_in_float16() -> None:
    """The convolution behind a large bias computes in float32, and its weights are such that float16 has."""
    rng = np.random.default_rng(0)
    project = rng.standard_normal((64, 64, 1, 1)).astype(np.float16).astype(np.float32)
    constants = {
        "depthwise": rng.uniform(0.01, 0.02, (64, 1, 3, 3)).astype(np.float32),
        "bias": np.full(64, 3, np.float32),
        "project": project,
        "shift": -3 * project.sum((1, 2, 3)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "depthwise", "bias"], ["wide"], group=64, pads=[1, 1, 1, 1]),
        helper.make_node("HardSwish", ["wide"], ["active"]),
        helper.make_node("Conv", ["active", "project", "shift"], ["y"]),
    ]
    content = small_graph(nodes, [1, 64, "h", "w"], **constants)
    converted = onnx.load_from_string(content)
    to_half(converted)
    types = {tensor.name: tensor.data_type for tensor in converted.graph.initializer}
    assert sorted(types.values()) == [TensorProto.FLOAT] * 3 + [TensorProto.FLOAT16]
    expected, found = in_both_types(content, rng.standard_normal((1, 64, 16, 16)).astype(np.float32))
    assert np.abs(found - expected).max() < 1e-3


def test_types_are_inferred_without_the_weights() -> None:
    """A model of more than 2 GiB cannot be written to memory, which inferring shapes does."""
    nodes = [helper.make_node("MatMul", ["x", "weight"], ["wide"]), helper.make_node("Add", ["wide", "shift"], ["y"])]
    rng = np.random.default_rng(0)
    constants = {
        "weight": rng.standard_normal((64, 64)).astype(np.float32),
        "shift": rng.standard_normal(64).astype(np.float32),
    }
    content = small_graph(nodes, [1, "n", 64], **constants)
    light = _without_weights(onnx.load_from_string(content))
    assert [tensor.name for tensor in light.graph.initializer] == ["shift"]
    assert [value.name for value in light.graph.input] == ["x", "weight"]
    assert light.ByteSize() < 2048 < len(content)
    expected, found = in_both_types(content, rng.standard_normal((1, 7, 64)).astype(np.float32))
    assert np.abs(found - expected).max() <= 2e-3 * np.abs(expected).max()


def test_the_report_and_the_predictor_say_it(tmp_path: Path) -> None:
    report = foveal.export(Plain(), output=tmp_path / "plain.onnx", size=(64, 64), half=True)
    assert report.dtype == "float16"
    assert report.kept_float  # the mean over positions
    assert any("CPUs" in note for note in report.notes)
    assert json.loads((tmp_path / "plain.onnx.json").read_text())["kept_float"] == list(report.kept_float)
    assert {entry.key: entry.value for entry in onnx.load(report).metadata_props}["dtype"] == "float16"
    predictor = foveal.load(report.path)
    assert "float16 file" in predictor.runtime
    assert predictor(np.zeros((70, 50, 3), np.uint8)).logits.dtype == np.float32
    types = {tensor.data_type for tensor in onnx.load(report).graph.initializer if tensor.name.endswith(".half")}
    assert types == {TensorProto.FLOAT16}


def test_openvino_files_hold_weights_in_float16(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    model = Plain()
    model.add_module("conv", torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3, 2, 1), torch.nn.Conv2d(64, 16, 3, 2, 1)))
    sizes = []
    for half in (False, True):
        report = foveal.export(model, "openvino", output=tmp_path / "plain.xml", size=(64, 64), half=half)
        sizes.append(report.path.with_suffix(".bin").stat().st_size)
    assert sizes[1] < 0.6 * sizes[0]
    assert "float16 file" in foveal.load(tmp_path / "plain.xml").runtime


def test_openvino_files_hold_biases_in_float32(tmp_path: Path) -> None:
    """The classifier takes the large biases of the convolution away: what is left has the precision of the weights."""
    pytest.importorskip("openvino")
    torch.manual_seed(0)
    model, bias = Plain(), torch.linspace(100, 101, 64)
    model.conv, model.classifier = torch.nn.Conv2d(3, 64, 5, 2, 2), torch.nn.Linear(64, 3)
    model.conv.bias = torch.nn.Parameter(bias)
    model.classifier.bias = torch.nn.Parameter(-model.classifier.weight.detach() @ bias)
    report = foveal.export(model, "openvino", output=tmp_path / "plain.xml", size=(64, 64), half=True)
    assert report.max_difference < 5e-3


def test_plans_hold_weights_in_float16(tmp_path: Path) -> None:
    """They are stored in float16 and computed in float32: rounding of the weights is the only difference."""
    source = assets.path("efficientvit_b0.camvid", ".foveal")
    plan = load_plan(source)
    plan.save(tmp_path / "half.foveal", half=True)
    again = load_plan(tmp_path / "half.foveal")
    assert {array.dtype for array in again.weights.values()} == {np.dtype(np.float32)}
    for name, array in plan.weights.items():
        assert np.abs(again.weights[name] - array).max() <= 2**-11 * np.abs(array).max()
        assert array.size >= 1024 or np.array_equal(again.weights[name], array)
    assert (tmp_path / "half.foveal").stat().st_size < 0.6 * source.stat().st_size
    expected, found = foveal.load(source)(photo(320)), foveal.load(tmp_path / "half.foveal")(photo(320))
    assert (found.mask == expected.mask).mean() >= 0.995


def test_biases_take_back_what_rounding_adds_behind_a_large_mean() -> None:
    """As it happens behind folded batch norms; the layers themselves keep their weights."""
    torch.manual_seed(0)
    biased = nn.Conv2d(3, 64, 1)
    with torch.no_grad():
        biased.weight *= 0.1
        nn.init.constant_(biased.get_parameter("bias"), 30)
    network = nn.Sequential(biased, nn.Conv2d(64, 8, 3, padding=1, groups=2), nn.Conv2d(8, 4, 1))
    feed = {"image": np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)}
    x = torch.from_numpy(feed["image"])
    with torch.no_grad():
        expected = network(x)
        rounded = with_half_weights(network, feed)
        plain = copy.deepcopy(network)
        for name, parameter in plain.named_parameters():
            if name.endswith("weight"):
                parameter.copy_(parameter.half())
                assert torch.equal(parameter, rounded.get_parameter(name))
        assert (rounded(x) - expected).abs().mean() < 0.3 * (plain(x) - expected).abs().mean()
        assert torch.equal(network(x), expected)


class _Several(nn.Module):
    """A layer that runs twice, two layers that share weights, and one on a single vector."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.first, self.second, self.vector = (nn.Linear(8, 8) for _ in range(4))
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(self.first(self.twice(x + 100) + self.twice(x + 300)))
        return y + self.vector(y.mean((0, 1)) + 50)


def test_layers_that_run_twice_or_share_weights_are_corrected() -> None:
    torch.manual_seed(0)
    network = _Several()
    feed = {"x": np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)}
    x = torch.from_numpy(feed["x"])
    with torch.no_grad():
        expected, rounded = network(x), with_half_weights(network, feed)
        plain = copy.deepcopy(network)
        for name, parameter in plain.named_parameters():
            if name.endswith("weight"):
                parameter.copy_(parameter.half())
        assert rounded.get_parameter("second.weight") is rounded.get_parameter("first.weight")
        assert (rounded(x) - expected).abs().max() < 0.05 * (plain(x) - expected).abs().max()


def test_weights_that_float16_lacks_stay() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.no_grad():
        network[0].get_parameter("weight").mul_(1e6)
        rounded = with_half_weights(network, {"x": np.ones((1, 2), np.float32)})
        assert torch.equal(rounded.get_parameter("0.weight"), network.get_parameter("0.weight"))
        assert torch.equal(rounded.get_parameter("1.weight"), network.get_parameter("1.weight").half().float())


def test_small_weights_stay() -> None:
    network = nn.Sequential(nn.Linear(8, 2), nn.Linear(2, 8, bias=False), nn.Linear(8, 4))
    with torch.no_grad():
        rounded = with_half_weights(network, {"x": np.ones((1, 8), np.float32)}, smallest=32)
    stay = {name: torch.equal(rounded.get_parameter(name), value) for name, value in network.named_parameters()}
    assert [name for name, same in stay.items() if name.endswith("weight") and same] == ["0.weight", "1.weight"]
    assert stay["0.bias"]


def photographed(value: NDArray[Any], name: str, prepare: Preprocess) -> NDArray[Any]:
    """An input of a network in the comparison of float16 files."""
    info = ModelInfo("net", "classify", preprocess=prepare)
    graph = Graph("", Plain(), Plain(), info, (), {}, {}, ({name: value, "other": np.zeros(3)},))
    feed, *others = on_photograph(graph).feeds
    assert len({feed[name].tobytes() for feed in (feed, *others)}) == 5
    assert not feed["other"].any()
    assert (feed[name].shape, feed[name].dtype) == (value.shape, value.dtype)
    return feed[name]


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_the_photograph_has_the_scale_of_the_input(channels: int, dtype: str) -> None:
    """Statistics of other images than photographs, as of satellites' bands, do not apply to it."""
    prepare = Preprocess((0.0076,) * channels, (0.0044,) * channels, dtype=dtype)
    if dtype == "uint8" and channels == 3:
        prepare = Preprocess((0.1, 0.2, 0.3), (0.2, 0.2, 0.2))
    found = photographed(np.zeros((2, channels, 40, 60), np.float32), "image", prepare)
    assert np.array_equal(found[0], found[1][..., ::-1])
    assert 0.2 < np.abs(found).max() < 5
    if dtype == "uint8" and channels == 3:
        assert abs(found[0, 0].mean() - (photo(60)[..., 0].mean() / 255 - 0.1) / 0.2) < 0.05


def test_the_photograph_in_other_layouts() -> None:
    """Files with the preparation inside, and those for other programs of SAM."""
    inside = photographed(np.zeros((1, 40, 60, 3), np.uint8), "image", Preprocess())
    pixels = photographed(np.zeros((40, 60, 3), np.float32), "input_image", Preprocess())
    assert np.array_equal(inside[0], pixels)
    assert abs(pixels.mean() - photo(60).mean()) < 2


def test_preparation_inside_of_a_file_in_float16(tmp_path: Path) -> None:
    report = foveal.export("efficientvit_b0.camvid", output=tmp_path, half=True, bake=True, input_size=(256, 512))
    assert report.agreement >= 0.999


def test_the_encoder_of_a_promptable_plan_has_corrected_biases(tmp_path: Path) -> None:
    plans = []
    for half in (False, True):
        foveal.export("tf_efficientnet_lite0.sam", "native", output=tmp_path / f"{half}.foveal", half=half)
        plans.append(load_plan(tmp_path / f"{half}.encoder.foveal").weights)
    biases = [name for name, array in plans[0].items() if array.ndim == 1]
    assert any(not np.array_equal(plans[0][name], plans[1][name]) for name in biases)


@pytest.mark.long
@pytest.mark.parametrize(
    ("to", "package"),
    [("onnx", "onnx"), ("openvino", "openvino"), ("native", "foveal"), ("litert", "litert_torch")],
)
def test_every_format_in_float16(to: str, package: str, tmp_path: Path) -> None:
    """From a model to masks, through the checks of the export."""
    pytest.importorskip(package)
    model = golden.fill(narrow("segment", 5))
    from foveal.prediction.torch_runner import TorchRunner

    report = foveal.export(model, to, output=tmp_path, size=(64, 96), half=True)
    assert report.dtype == "float16"
    if to == "onnx":
        assert "backbone.stages.2.1.attention" in report.kept_float
    predictor = foveal.load(report.path)
    assert "float16 file" in predictor.runtime
    expected = Predictor(TorchRunner(model), model.foveal_info, "torch")(photo(320)).mask
    assert (predictor(photo(320)).mask == expected).mean() >= 0.98  # random weights: many near ties


@pytest.mark.long
def test_click_to_mask_in_less_than_20_megabytes(tmp_path: Path) -> None:
    report = foveal.export("tf_efficientnet_lite0.sam", output=tmp_path / "sam.onnx", half=True)
    files = {path.name: path.stat().st_size for path in (report.path, *report.extra_files)}
    assert files["sam.encoder.onnx"] + files["sam.prompts.onnx"] < 20e6
    assert files["sam.encoder.onnx"] + files["sam.decoder.onnx"] < 20e6
    image = photo(640)
    expected, found = (
        foveal.load(ref).encode(image) for ref in ("tf_efficientnet_lite0.sam", tmp_path / "sam.encoder.onnx")
    )
    prompts: tuple[dict[str, Any], ...] = (
        {"points": [[320, 200]], "labels": [1]},
        {"points": [[100, 300]], "labels": [1]},
        {"boxes": [[200, 100, 420, 330]]},
    )
    for prompt in prompts:
        for a, b in zip(expected.prompt(**prompt).masks, found.prompt(**prompt).masks, strict=True):
            assert np.logical_and(a, b).sum() >= 0.98 * np.logical_or(a, b).sum()


def compared(differences: list[float], repeats: int = 1) -> float:
    """What the comparison finds if the output of each input differs so much."""
    values = iter(differences)
    inputs = ({"x": np.ones((1, 4), np.float32)},) * len(differences)
    graph = Graph("", Plain(), nn.Identity(), ModelInfo("net", "regress"), (), {"x": ()}, {"y": ()}, inputs, repeats)
    return compare(graph, lambda feed: [feed["x"] + next(values)], "float16")[0]


def test_the_median_of_inputs_that_are_alike_counts() -> None:
    """A single crop can be an accident of rounding; each size has its own median."""
    assert compared([0.001, 0.5, 0.002], repeats=3) == pytest.approx(0.002, rel=1e-3)
    with pytest.raises(foveal.ExportError, match=r"differs from the model by 5\.0e-01: not written"):
        compared([0.001, 0.001, 0.002, 0.5, 0.5, 0.5], repeats=3)
    with pytest.raises(foveal.ExportError, match="differs from the model by 3"):
        compared([0.001, 0.001, 0.03])  # not alike: each counts
    with pytest.raises(foveal.ExportError, match="nan"):
        compared([0.001, np.nan, 0.001], repeats=3)


def test_the_message_says_that_values_exceed_float16(tmp_path: Path) -> None:
    model: Any = Plain().eval()
    with torch.no_grad():
        model.conv.weight.mul_(1e6)
        model.classifier.weight.mul_(1e-6)
    with pytest.raises(foveal.ExportError, match=r"values inside reach [\d,]{7,}, float16 ends at 65,504"):
        foveal.export(model, output=tmp_path / "a.onnx", half=True)
    assert not list(tmp_path.iterdir())
