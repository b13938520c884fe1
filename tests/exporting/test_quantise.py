"""Files in int8 lose no more than was allowed: sensitive layers stay in float32, or no file is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import foveal
from foveal.data.synthetic import write_shapes
from foveal.errors import ConfigError, DataError, ExportError
from foveal.exporting import quantise
from foveal.exporting.calibration import QuantisationData
from helpers.commands import Command
from helpers.narrow import Plain, narrow

SPOILED = "backbone.stages.0.0.project.conv"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes"), train=6, val=4, size=(64, 96))


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of each of three classes, without splits."""
    root, rng = tmp_path_factory.mktemp("classes"), np.random.default_rng(0)
    for name in ("a", "b", "c"):
        (root / name).mkdir()
        for index in range(6):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(root / name / f"{index}.png")
    return root


def spoiled() -> Any:
    """A model with a channel of huge values that the layer which reads it ignores: 8 bits are too few there."""
    model = narrow("segment", 4)
    block = model.backbone.stages[0][0]
    block.depthwise.norm.weight.data[0] *= 1e5
    block.project.conv.weight.data[:, 0] = 0
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> Any:
    output = tmp_path_factory.mktemp("int8") / "spoiled.onnx"
    return foveal.export(spoiled(), output=output, size=(64, 96), int8=shapes, max_loss=1.0)


def test_the_sensitive_layer_is_found(exported: Any, shapes: Path) -> None:
    found = exported.quantisation
    assert exported.kept_float[0] == SPOILED
    assert found.before - found.after <= 1.0
    assert len(exported.kept_float) < found.layers / 2
    assert exported.agreement > 0.9
    assert (found.split, found.images, found.calibration_split, found.calibration_images) == ("val", 4, "train", 6)
    measured = foveal.evaluate(exported.path, shapes, split="val", runtime="onnxruntime")
    assert 100 * measured.miou == pytest.approx(found.after)
    stored = json.loads(exported.path.with_name("spoiled.onnx.json").read_text())
    assert stored["quantisation"]["after"] == found.after
    assert stored["bytes"] == exported.path.stat().st_size
    assert {path.name for path in exported.path.parent.iterdir()} == {"spoiled.onnx", "spoiled.onnx.json"}
    for part in ("int8", "mIoU", f"{len(exported.kept_float)} layers in float32", "of the time of float32"):
        assert part in str(exported)


def test_the_file_holds_integers_and_runs_on_any_size(exported: Any) -> None:
    model = onnx.load(exported.path)
    onnx.checker.check_model(model, full_check=True)
    types = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 4}
    assert onnx.TensorProto.INT8 in types
    predictor = foveal.load(exported.path)
    assert predictor.info.notes["int8"]["kept_float"] == sorted(exported.kept_float, key=_place(predictor))
    assert "int8" in predictor.runtime
    assert predictor(np.zeros((41, 70, 3), np.uint8)).mask.shape == (41, 70)


def _place(predictor: Any) -> Any:
    return predictor.info.notes["int8"]["kept_float"].index


def test_a_loss_that_cannot_be_met_leaves_no_file(
    tmp_path: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantise, "_LEAST_SHARE", 1.0)  # no layer may stay in float32
    with pytest.raises(ExportError, match=r"the best mIoU is .* with 0 of \d+ layers in float32.*max_loss"):
        foveal.export(spoiled(), output=tmp_path / "a.onnx", size=(64, 96), int8=shapes, max_loss=0.0)
    assert not list(tmp_path.iterdir())


def test_openvino(tmp_path: Path, classes: Path) -> None:
    pytest.importorskip("openvino")
    report = foveal.export(Plain(), "openvino", output=tmp_path / "a.xml", size=(64, 64), int8=classes, max_loss=100)
    predictor = foveal.load(report.path)
    assert "int8" in predictor.runtime
    assert report.quantisation is not None
    assert (report.quantisation.metric, report.quantisation.images) == ("top-1", 9)
    assert {path.name for path in tmp_path.iterdir()} == {"a.xml", "a.bin", "a.xml.json"}
    assert b"i8" in report.path.read_bytes()


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> foveal.Predictor:
    path = tmp_path_factory.mktemp("plain") / "a.onnx"
    return foveal.load(foveal.export(Plain(), output=path, size=(64, 64)))


@pytest.mark.parametrize("most", [2, 100])
def test_no_image_is_calibrated_and_measured_on(classes: Path, predictor: foveal.Predictor, most: int) -> None:
    """Without splits, one half of the images is for each, whatever numbers are asked for."""
    data = QuantisationData(classes, predictor, most, most)
    chosen = [{part.name(i) for i in range(len(part))} for part in (data.calibration, data.held_out)]
    assert [len(names) for names in chosen] == [min(most, 9)] * 2
    assert chosen[0].isdisjoint(chosen[1])
    again = QuantisationData(classes, predictor, most, most)
    assert (again.calibration.indices, again.held_out.indices) == (data.calibration.indices, data.held_out.indices)


def test_inputs_are_prepared_as_the_predictor_prepares_them(classes: Path, predictor: foveal.Predictor) -> None:
    data = QuantisationData(classes, predictor, 4, 4)
    fed: list[Any] = []

    class Watcher:
        def __call__(self, batch: Any) -> Any:
            fed.append(batch)
            return predictor.runner(batch)

    watched = foveal.Predictor(Watcher(), predictor.info, "")
    for index in range(len(data.calibration)):
        watched(data.calibration.name(index))
    for feed, batch in zip(data.inputs(), fed, strict=True):
        assert np.array_equal(feed["image"], batch)


def test_too_few_images(tmp_path: Path, predictor: foveal.Predictor) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "a" / "0.png")
    with pytest.raises((DataError, ConfigError), match=r"needs an image to calibrate on|classes"):
        QuantisationData(tmp_path, predictor, 4, 4)


def test_constants_are_tensors(predictor: foveal.Predictor, tmp_path: Path) -> None:
    """The preprocessing of ONNX Runtime's quantisation fails on constants that are lists of integers."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = tmp_path / "segment.onnx"
    foveal.export(narrow("segment", 4), output=path, size=(64, 96))
    quant_pre_process(path, tmp_path / "prepared.onnx", skip_optimization=True, auto_merge=True)
    assert not [node for node in onnx.load(path).graph.node if node.op_type == "Constant"]


def test_impossible_requests(tmp_path: Path, classes: Path, cli: Command) -> None:
    output = tmp_path / "a.onnx"
    for options, message in (
        ({"max_loss": 1.0}, "max_loss=1.0 is for int8"),
        ({"calibration_images": 5}, "calibration_images=5 is for int8"),
        ({"int8": classes, "half": True}, "one type"),
        ({"int8": classes, "max_loss": -1.0}, "give 0 or more points"),
        ({"int8": classes, "calibration_images": 0}, "give 1 or more"),
    ):
        with pytest.raises(ConfigError, match=message):
            foveal.export(Plain(), output=output, **options)
    with pytest.raises(ConfigError, match=r"native files have no int8: export to one of onnx, openvino"):
        foveal.export(Plain(), "native", output=tmp_path / "a.foveal", int8=classes)
    with pytest.raises(DataError, match="no such folder"):
        foveal.export(Plain(), output=output, size=(64, 64), int8=tmp_path / "missing")
    failed = cli("export", "efficientvit_b0.camvid", "--max-loss", "0.3", "--output", output)
    assert failed.returncode == 2
    assert "is for int8" in failed.stderr
    assert not list(tmp_path.iterdir())
