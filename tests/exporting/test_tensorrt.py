"""TensorRT: what can be checked without its package, which needs a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import foveal
from foveal.exporting.graph import Graph, Options
from foveal.exporting.onnx import make_onnx
from foveal.exporting.tensorrt import INSTALLED, check_operators
from foveal.info import ModelInfo
from foveal.prediction.tensorrt_runner import split_description, with_description
from foveal.prediction.torch_runner import TorchRunner
from helpers import golden
from helpers.narrow import narrow

pytestmark = pytest.mark.skipif(INSTALLED, reason="TensorRT is installed: the export builds and runs an engine")


@pytest.mark.parametrize("attention", [False, pytest.param(True, marks=pytest.mark.long)])  # tracing it takes long
def test_without_tensorrt_the_file_is_onnx_with_the_command(attention: bool, tmp_path: Path) -> None:
    model = narrow(attention=attention)
    report = foveal.export(model, "tensorrt", output=tmp_path / "a.trt.onnx", size=(64, 96))
    assert "trtexec --onnx=NAME.trt.onnx --saveEngine=NAME.plan --noTF32" in str(report)
    shapes = "--minShapes=image:1x3x32x32 --optShapes=image:1x3x512x1024 --maxShapes=image:16x3x2048x4096"
    assert shapes in str(report)
    assert foveal.load(report.path).runner(np.zeros((2, 3, 40, 50), np.float32)).shape == (2, 3)


@pytest.mark.long
def test_float16_is_in_the_graph(tmp_path: Path) -> None:
    """Engines are strongly typed: what TensorRT computes in float16, and what in float32, stands in the ONNX file."""
    model = golden.fill(narrow("segment", 4))
    file = foveal.export(model, "tensorrt", output=tmp_path / "a.trt.onnx", size=(64, 96), half=True).path
    proto = onnx.load(file)
    onnx.checker.check_model(proto, full_check=True)
    check_operators("net", proto)
    types = [tensor.data_type for tensor in proto.graph.initializer if tensor.name.endswith((".weight", ".half"))]
    assert types.count(onnx.TensorProto.FLOAT16) > 0.8 * len(types)
    image = np.random.default_rng(0).standard_normal((2, 3, 70, 90)).astype(np.float32)
    expected, found = TorchRunner(model)(image), foveal.load(file).runner(image)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


class Attention(nn.Module):
    """Attention of two heads to any number of tokens ``(B, N, 16)``."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.project(x).unflatten(-1, (2, 8)).transpose(1, 2)
        return nn.functional.scaled_dot_product_attention(heads, heads, heads)


def test_attention_to_any_number_of_tokens_has_operators_of_tensorrt() -> None:
    """The translation of it has conversions with CastLike, which TensorRT lacks."""
    model, example = Attention().eval(), (torch.randn(2, 5, 16),)
    free: tuple[dict[str, Any], dict[str, Any]] = ({"x": ("batch", "tokens")}, {"y": ("batch", "", "tokens")})
    proto = make_onnx(Graph("", model, model, ModelInfo("net", "classify"), example, *free, ()), Options())
    check_operators("net", proto)
    tokens = torch.randn(3, 7, 16)
    found = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": tokens.numpy()})[0]
    np.testing.assert_allclose(found, model(tokens).detach().numpy(), atol=1e-6)


def test_operators_that_tensorrt_lacks_are_named() -> None:
    make_node, tensor = onnx.helper.make_node, onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2])
    nodes = [make_node("Relu", ["x"], ["a"]), make_node("Acosh", ["a"], ["b"]), make_node("Mish", ["b"], ["x2"])]
    result = onnx.helper.make_tensor_value_info("x2", onnx.TensorProto.FLOAT, [2])
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "graph", [tensor], [result]), opset_imports=[onnx.helper.make_opsetid("", 18)]
    )
    with pytest.raises(foveal.ExportError, match="net: TensorRT does not have the operators Acosh, Mish"):
        check_operators("net", model)


def test_an_engine_file_begins_with_its_description(tmp_path: Path) -> None:
    text = ModelInfo("efficientvit_b0", "classify", 3).to_json()
    content = with_description(b"engine", text)
    assert split_description(content, "a.engine") == (text, b"engine")
    for damaged in (b"", b"engine of others", content[: 4 + len(text)], content[1:]):
        with pytest.raises(foveal.CheckpointError, match=r"a\.engine: no Foveal description at its start"):
            split_description(damaged, "a.engine")
    (tmp_path / "a.engine").write_bytes(content)
    with pytest.raises(foveal.DependencyError, match="tensorrt cannot run here: tensorrt is not installed"):
        foveal.load(tmp_path / "a.engine")
