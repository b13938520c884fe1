"""TensorRT: what can be checked without its package, which needs a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import foveal
from foveal.exporting import tensorrt
from foveal.exporting.tensorrt import INSTALLED
from foveal.info import ModelInfo
from foveal.prediction.tensorrt_runner import split_description, with_description
from helpers.narrow import narrow

pytestmark = pytest.mark.skipif(INSTALLED, reason="TensorRT is installed: the export builds and runs an engine")


def test_without_tensorrt_the_file_is_onnx_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = foveal.export(narrow(), "tensorrt", output=tmp_path / "a.trt.onnx", size=(64, 96))
    assert "trtexec --onnx=NAME.trt.onnx --saveEngine=NAME.plan" in str(report)
    shapes = "--minShapes=image:1x3x32x32 --optShapes=image:1x3x512x1024 --maxShapes=image:16x3x2048x4096"
    assert shapes in str(report)
    assert foveal.load(report.path).runner(np.zeros((2, 3, 40, 50), np.float32)).shape == (2, 3)
    monkeypatch.setattr(tensorrt, "OPERATORS", tensorrt.OPERATORS - {"Conv"})
    with pytest.raises(foveal.ExportError, match="TensorRT does not have the operators Conv"):
        foveal.export(narrow(), "tensorrt", output=tmp_path / "b.trt.onnx", input_size=(64, 64))
    assert not list(tmp_path.glob("b*"))


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
