"""Rounded weights keep a layer's outputs, and the statistics that this takes are those of the layer's real inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional

from foveal.exporting import layer_inputs
from foveal.exporting.layer_inputs import Layer, Moments, Range, find_layers, moments_of, ranges_of
from foveal.exporting.quantise_qdq import OnnxQuantizer
from foveal.exporting.rounding import round_weights
from foveal.info import ModelInfo


def layer(weights: Any, op: str = "Conv", **attributes: Any) -> Layer:
    return Layer("layer", "node", op, "x", "weight", "bias", weights.astype(np.float32), attributes)


@pytest.mark.parametrize("groups", [1, 4])
def test_outputs_change_less_than_by_rounding_to_the_nearest(groups: int) -> None:
    """The inputs are correlated and have large means, as behind a folded batch norm."""
    rng = np.random.default_rng(0)
    inner = 64 // groups
    mixing = rng.standard_normal((groups, 8, inner))
    x = rng.standard_normal((groups, 2000, 8)) @ mixing + 0.1 * rng.standard_normal((groups, 2000, inner)) + 30
    weights = rng.standard_normal((32, inner, 1, 1))
    centred = x - x.mean(1, keepdims=True)
    moments = Moments(x.mean(1), x.mean(1) + 1, centred.swapaxes(1, 2) @ centred / 2000)
    each = layer(weights, group=groups)
    found = round_weights(each, moments)
    matrix, scale = each.matrix().astype(np.float64), found.scale.reshape(groups, -1, 1)
    rounded = found.codes.reshape(matrix.shape) * scale
    largest = np.abs(matrix).max(2, keepdims=True) / 127
    nearest = np.rint(matrix / largest) * largest
    expected = x @ matrix.swapaxes(1, 2)
    assert found.bias is not None
    assert found.bias_quantised is not None
    error = x @ rounded.swapaxes(1, 2) + found.bias.reshape(groups, 1, -1) - expected
    plain = x @ nearest.swapaxes(1, 2) - expected
    assert np.abs(error.mean(1)).max() < 1e-4
    assert error.std() < 0.5 * plain.std()
    shifted = (x + 1) @ rounded.swapaxes(1, 2) + found.bias_quantised.reshape(groups, 1, -1) - expected
    assert np.abs(shifted.mean(1)).max() < 1e-4


def test_without_moments_weights_are_rounded_to_the_nearest() -> None:
    weights = np.random.default_rng(0).standard_normal((5, 3, 2, 2))
    weights[:, 1] = 0  # a channel without weights
    found = round_weights(layer(weights, "ConvTranspose"), None)
    error = found.codes * found.scale[:, None, None] - weights
    assert np.abs(error).max() <= 0.5001 * found.scale.max()
    assert not found.codes[:, 1].any()


@pytest.mark.parametrize(
    ("groups", "stride", "dilation", "pads"), [(1, 1, 1, (1, 1)), (3, 2, 1, (0, 2)), (6, 2, 2, (2, 0))]
)
def test_patches_are_what_a_convolution_multiplies(
    groups: int, stride: int, dilation: int, pads: tuple[int, int]
) -> None:
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal((2, 6, 9, 7)), rng.standard_normal((6, 6 // groups, 3, 3))
    each = layer(weights, group=groups, strides=[stride] * 2, dilations=[dilation] * 2, pads=[*pads, *pads])
    found = (each.patches(x, rng) @ each.matrix().swapaxes(1, 2)).transpose(1, 0, 2).reshape(-1, 6)
    tensors = map(torch.from_numpy, (x, each.weights.astype(np.float64)))
    maps = functional.conv2d(*tensors, stride=stride, padding=pads, dilation=dilation, groups=groups)
    outputs = maps.permute(0, 2, 3, 1).reshape(-1, 6).numpy()
    distances = np.abs(found[:, None] - outputs).max(2)
    assert distances.min(1).max() < 1e-9
    assert len(np.unique(distances.argmin(1))) > 0.5 * len(outputs)  # at many places


def test_ranges_hold_zero_and_leave_out_what_is_rare() -> None:
    values = np.random.default_rng(0).uniform(1, 2, 10000).astype(np.float32)
    assert Range.between(1, 2)(np.zeros(1, np.float32)) == 0
    assert np.abs(Range.between(1, 2)(values) - values).max() <= 0.5001 * 2 / 255
    values[0] = 4
    found = ranges_of(small_model(), find_layers(small_model()), [{"x": values.reshape(1, 16, 25, 25)}])["x"]
    assert 2 <= found.scale * 255 < 3


def small_model() -> onnx.ModelProto:
    """Convolutions with and without a bias, a matrix product, and a linear layer."""
    rng = np.random.default_rng(0)
    value = helper.make_tensor_value_info
    arrays = {
        "a.weight": rng.standard_normal((16, 1, 3, 3)),
        "a.bias": rng.standard_normal(16),
        "b.weight": rng.standard_normal((8, 16, 1, 1)),
        "b.bias": 10 * rng.standard_normal(8),
        "c.weight": rng.standard_normal((8, 8, 1, 1)),
        "d": rng.standard_normal((8, 12)),
        "e.weight": rng.standard_normal((4, 12)),
        "e.bias": rng.standard_normal(4),
    }
    nodes = [
        helper.make_node("Conv", ["x", "a.weight", "a.bias"], ["a"], "a", group=16, pads=[1, 1, 1, 1]),
        helper.make_node("HardSwish", ["a"], ["a2"], "act"),
        helper.make_node("Conv", ["a2", "b.weight", "b.bias"], ["b"], "b"),
        helper.make_node("Relu", ["b"], ["b2"], "act2"),
        helper.make_node("Conv", ["b2", "c.weight"], ["c"], "c"),
        helper.make_node("GlobalMaxPool", ["c"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"),
        helper.make_node("MatMul", ["flat", "d"], ["d1"], "d"),
        helper.make_node("Gemm", ["d1", "e.weight", "e.bias"], ["y"], "e", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [value("x", TensorProto.FLOAT, [1, 16, "h", "w"])],
        [value("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_values_are_fetched_in_groups_and_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network runs once for each group, and gives no other values; a name may come twice."""
    feed = {"x": np.random.default_rng(0).standard_normal((1, 16, 20, 20)).astype(np.float32)}
    names = ["a2", "x", "b2", "d1", "a2", "flat"]
    sizes = {"x": 4 * 6400, "a2": 4 * 6400, "b2": 4 * 3200, "d1": 4 * 12, "flat": 4 * 8}
    expected = list(layer_inputs._Fetcher(small_model(), names)(feed))
    assert [value.nbytes for value in expected] == [sizes[name] for name in names]
    layers = find_layers(small_model())
    ranges = ranges_of(small_model(), layers, [feed])
    moments = moments_of(small_model(), layers, ranges, [feed])
    given: list[int] = []
    opened = layer_inputs._session

    class Watched:
        def __init__(self, model: onnx.ModelProto) -> None:
            self.session = opened(model)

        def run(self, *arguments: Any) -> Any:
            values = self.session.run(*arguments)
            given.append(sum(np.asarray(value).nbytes for value in values))
            return values

    monkeypatch.setattr(layer_inputs, "_session", Watched)
    monkeypatch.setattr(layer_inputs, "_BYTES", sizes["a2"] + sizes["b2"])
    found = list(layer_inputs._Fetcher(small_model(), names)(feed))
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    counts = 8 * len(sizes) - 8  # the input is not counted
    assert given == [counts, sizes["a2"], sizes["b2"], sizes["d1"] + sizes["a2"] + sizes["flat"]]  # x takes no run
    assert ranges_of(small_model(), layers, [feed]) == ranges
    for name, each in moments_of(small_model(), layers, ranges, [feed]).items():
        assert np.array_equal(each.covariance, moments[name].covariance)
        assert np.array_equal(each.mean, moments[name].mean)


def test_files_hold_what_was_asked_for(tmp_path: Path) -> None:
    """All layers in int8, some, and the weights alone; the outputs stay near those of float32."""
    onnx.save(small_model(), tmp_path / "a.onnx")
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((1, 16, 20, 20)).astype(np.float32)} for _ in range(20)]
    quantizer = OnnxQuantizer(tmp_path / "a.onnx", feeds)
    assert quantizer.layers == {"a": 576, "b": 512, "c": 256, "d": 384, "e": 192}
    expected = [run(small_model(), feed) for feed in feeds]
    info = ModelInfo("small", "classify", 4)
    for names, weights, quantised in (("abcde", "", 5), ("ace", "bd", 3), ("", "abcde", 0), ("bc", "", 2)):
        model = quantizer.make(list(names), list(weights), info)
        onnx.checker.check_model(model, full_check=True)
        operators = [node.op_type for node in model.graph.node]
        assert operators.count("QuantizeLinear") == quantised
        types = [tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1]
        assert types.count(TensorProto.INT8) == len(names + weights)
        assert types.count(TensorProto.FLOAT) == 5 - len(names + weights)
        errors = [run(model, feed) - output for feed, output in zip(feeds, expected, strict=True)]
        assert np.std(errors) < (0.1 if names else 0.02) * np.std(expected)


def run(model: onnx.ModelProto, feed: dict[str, Any]) -> Any:
    options = onnxruntime.SessionOptions()
    # Else processors without VNNI overflow.
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feed)[0])
