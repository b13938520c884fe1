"""MambaVision as a graph: traced, exported and compiled, for any batch and size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import foveal
from foveal.factory.create import create_model
from foveal.prediction.openvino_runner import openvino_core
from foveal.weights.loading import load_checkpoint
from helpers import golden
from helpers.golden import largest
from helpers.mambavisions import LICENCE, SHALLOW, published_state, small


def runtimes(path: Path, x: torch.Tensor) -> list[np.ndarray]:
    """Run an exported file in ONNX Runtime and OpenVINO (which would use bfloat16 on processors that have it)."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    compiled = openvino_core(path.name).compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [np.asarray(session.run(None, {"image": x.numpy()})[0]), compiled({"image": x.numpy()})[0]]


ROADS = [{}, {"neutral_padding": True}, {"window_size": "whole"}]


@pytest.mark.long  # the test below traces one, too
@pytest.mark.parametrize("options", [*ROADS, {"window_size": 20}], ids=str)
def test_traced_graph_takes_any_batch_and_size(options: dict[str, Any]) -> None:
    """Also with one window at the traced size and several at other sizes, and the reverse."""
    model = small(config=SHALLOW, **options)
    sides = {
        0: torch.export.Dim("batch", min=1),
        2: torch.export.Dim("height", min=33),
        3: torch.export.Dim("width", min=33),
    }
    image = torch.zeros(2, 3, 96, 128)
    program = torch.export.export(model, (image,), dynamic_shapes=[sides], strict=False).module()
    for shape in ((1, 3, 33, 64), (3, 3, 200, 149), (1, 3, 350, 340)):
        x = torch.randn(*shape)
        with torch.no_grad():
            expected = model(x)
            assert largest(program(x) - expected) < 1e-5 * largest(expected)


@pytest.mark.parametrize(
    "options", [ROADS[0], *(pytest.param(road, marks=pytest.mark.long) for road in ROADS[1:])], ids=str
)
def test_exported_graph_takes_any_batch_and_size(
    options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Traced at one size and run at others, in two runtimes: within 1e-4 of the spread of the logits."""
    model = small(config=SHALLOW, **options)
    path = foveal.export(model, output=tmp_path / "small.onnx", size=(96, 128)).path
    for shape in ((1, 3, 96, 128), (3, 3, 200, 149), (2, 3, 40, 65)):
        x = torch.randn(*shape)
        with torch.no_grad():
            expected = model(x).numpy()
        for output in runtimes(path, x):
            assert np.abs(output - expected).max() <= 1e-4 * expected.std()
    foveal.load(str(path))
    assert LICENCE in capsys.readouterr().err


@torch.no_grad()
def test_compiles_without_breaks() -> None:
    model, x = small(config=SHALLOW), torch.randn(2, 3, 70, 101)
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected = model(x)
    assert largest(compiled(x) - expected) < 1e-5 * largest(expected)


@pytest.mark.long
def test_published_size_exports(tmp_path: Path) -> None:
    tiny = create_model("mambavision_t").eval()
    load_checkpoint(tiny, published_state("mambavision_t"))
    path = foveal.export(tiny, output=tmp_path / "tiny.onnx").path
    for shape in ((1, 3, 224, 224), (2, 3, 250, 131)):
        x = golden.normal_input(shape)
        with torch.no_grad():
            expected = tiny(x).numpy()
        for output in runtimes(path, x):
            assert np.abs(output - expected).max() <= 1e-4 * expected.std()
