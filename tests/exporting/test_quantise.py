"""Files in int8 lose no more than was allowed: sensitive layers stay in float32, or no file is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

import foveal
from foveal.data.synthetic import write_shapes
from foveal.errors import ConfigError, DataError, ExportError, InputError
from foveal.exporting import export, quantise
from foveal.exporting.calibration import QuantisationData
from foveal.images.preparing import prepare
from foveal.info import ModelInfo, attach, info_of
from foveal.prediction.input_limits import InputLimits
from helpers.commands import Command
from helpers.narrow import Plain, narrow


class Spoiled(nn.Module):
    """A classifier whose second layer ignores a channel of huge values: in the range of all channels, 8 bits fail."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 1)
        self.classifier = nn.Linear(16, 3)
        self.first.weight.data[0] *= 1e5
        self.second.weight.data[:, 0] = 0
        attach(self, ModelInfo("plain", "classify", 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.second(self.first(x).relu()).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def model() -> Spoiled:
    """Its classes are about equally frequent among :func:`pictures`."""
    model = Spoiled().eval()
    batch = np.concatenate([prepare(picture, info_of(model).preprocess) for picture in pictures()])
    with torch.no_grad():
        logits = model(torch.from_numpy(batch))
        model.classifier.weight.data /= logits.std(0)[:, None]
        model.classifier.bias.data = -(model(torch.from_numpy(batch)) - model.classifier.bias).mean(0)
    return model


def pictures() -> list[NDArray[np.uint8]]:
    """Noise of random colours."""
    rng = np.random.default_rng(0)
    colours = rng.integers(40, 216, (60, 1, 1, 3))
    return list((colours + rng.integers(-40, 40, (60, 32, 32, 3))).astype(np.uint8))


@pytest.fixture(scope="module")
def predictor(model: Spoiled, tmp_path_factory: pytest.TempPathFactory) -> foveal.Predictor:
    return foveal.load(foveal.export(model, output=tmp_path_factory.mktemp("float") / "a.onnx", size=(64, 64)))


@pytest.fixture(scope="module")
def classes(predictor: foveal.Predictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images without splits, in folders of the classes that the model in float32 finds: its top-1 is 100 %."""
    root = tmp_path_factory.mktemp("classes")
    for index, picture in enumerate(pictures()):
        folder = root / f"class {np.argmax(predictor.classify(picture).scores)}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(picture).save(folder / f"{index:02}.png")
    return root


@pytest.fixture(scope="module")
def exported(model: Spoiled, classes: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    output = tmp_path_factory.mktemp("int8") / "a.onnx"
    return foveal.export(model, output=output, size=(64, 64), int8=classes, max_loss=10)


def test_the_sensitive_layer_is_found(exported: Any, classes: Path) -> None:
    found = exported.quantisation
    assert exported.kept_float == ("second",)
    assert (found.metric, found.before, found.layers) == ("top-1", 100.0, 3)
    assert found.after >= 90
    assert (found.split, found.images, found.calibration_split, found.calibration_images) == ("all", 30, "all", 30)
    assert found.evaluations > 1
    stored = json.loads(exported.path.with_name("a.onnx.json").read_text())
    assert stored["quantisation"]["after"] == found.after
    assert stored["bytes"] == exported.path.stat().st_size
    assert {path.name for path in exported.path.parent.iterdir()} == {"a.onnx", "a.onnx.json"}
    for part in ("int8", "top-1 100.00", "1 layer in float32 (second)", "of the time of float32"):
        assert part in str(exported)
    measured = foveal.evaluate(exported.path, classes, runtime="onnxruntime")
    assert measured.top1 >= 0.9


def test_the_file_holds_integers_and_says_so(exported: Any) -> None:
    model = onnx.load(exported.path)
    onnx.checker.check_model(model, full_check=True)
    types = [tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 4]
    assert onnx.TensorProto.INT8 in types
    assert {entry.key: entry.value for entry in model.metadata_props}["dtype"] == "int8"
    predictor = foveal.load(exported.path)
    assert predictor.info.notes["int8"]["kept_float"] == ["second"]
    assert "int8" in predictor.runtime
    assert predictor(np.zeros((41, 70, 3), np.uint8)).scores.shape == (3,)


def test_a_loss_that_cannot_be_met_leaves_no_file(
    model: Spoiled, classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantise, "_LEAST_SHARE", 1.0)  # no layer may stay in float32
    with pytest.raises(ExportError, match=r"the best top-1 is .* with 0 of 3 layers in float32.*raise max_loss"):
        foveal.export(model, output=tmp_path / "a.onnx", size=(64, 64), int8=classes, max_loss=10)
    assert not list(tmp_path.iterdir())


def test_damaged_images_are_left_out_and_not_counted(model: Spoiled, classes: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        shutil.copytree(classes, tmp_path / "data" / split)
        min((tmp_path / "data" / split).rglob("*.png")).write_bytes(b"")
    report = foveal.export(model, output=tmp_path / "a.onnx", size=(64, 64), int8=tmp_path / "data", max_loss=100)
    found = report.quantisation
    assert found is not None
    assert (found.images, found.calibration_images) == (59, 59)
    for what in ("calibrate", "measure"):
        assert f"1 of the images to {what} on could not be used" in report.notes


def test_data_without_a_readable_image_is_an_error(predictor: foveal.Predictor, classes: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        shutil.copytree(classes, tmp_path / split)
    for file in (tmp_path / "train").rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match="no image to calibrate on can be used; the first: "):
        list(QuantisationData(tmp_path, predictor, 4, 4).inputs())


def test_data_of_other_classes_is_refused_before_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_shapes(tmp_path / "shapes", train=1, val=1, size=(64, 96))
    monkeypatch.setattr(export, "_write_all", None)
    for count in (3, 5):
        with pytest.raises(ConfigError, match=r"has other classes than the model: 4 instead of \d; give data"):
            foveal.export(narrow("segment", count), output=tmp_path / "a.onnx", size=(64, 96), int8=data)
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


@pytest.mark.long
def test_openvino(model: Spoiled, tmp_path: Path, classes: Path) -> None:
    pytest.importorskip("openvino")
    report = foveal.export(model, "openvino", output=tmp_path / "a.xml", size=(64, 64), int8=classes, max_loss=10)
    predictor = foveal.load(report.path)
    assert "int8" in predictor.runtime
    assert report.quantisation is not None
    assert report.kept_float == ("second",)
    assert {path.name for path in tmp_path.iterdir()} == {"a.xml", "a.bin", "a.xml.json"}
    assert b"i8" in report.path.read_bytes()


@pytest.mark.parametrize("most", [2, 100])
def test_no_image_is_calibrated_and_measured_on(classes: Path, predictor: foveal.Predictor, most: int) -> None:
    """Without splits, one half of the images is for each, whatever numbers are asked for."""
    data = QuantisationData(classes, predictor, most, most)
    chosen = [{part.name(i) for i in range(len(part))} for part in (data.calibration, data.held_out)]
    assert [len(names) for names in chosen] == [min(most, 30)] * 2
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


@pytest.mark.long
def test_segmentation(tmp_path: Path) -> None:
    data = write_shapes(tmp_path / "shapes", train=6, val=4, size=(64, 96))
    report = foveal.export(narrow("segment", 4), output=tmp_path / "a.onnx", size=(64, 96), int8=data, max_loss=100)
    found = report.quantisation
    assert found is not None
    assert (found.split, found.images, found.calibration_split, found.calibration_images) == ("val", 4, "train", 6)
    measured = foveal.evaluate(report.path, data, split="val", runtime="onnxruntime")
    assert 100 * measured.miou == pytest.approx(found.after)
    assert foveal.load(report.path)(np.zeros((41, 70, 3), np.uint8)).mask.shape == (41, 70)


def test_inputs_of_a_file_of_one_size_have_that_size(tmp_path: Path) -> None:
    """Smaller images are padded, and larger ones cut into tiles, as when the file runs."""
    data = write_shapes(tmp_path / "shapes", train=2, val=1, size=(64, 96))
    for size in ((96, 128), (64, 96), (48, 64)):
        notes = InputLimits(size, 1, fixed=True).to_notes()
        info = ModelInfo("plain", "segment", 4, output_stride=8, notes=notes)
        inputs = QuantisationData(data, foveal.Predictor(lambda batch: batch, info, ""), 2, 1).inputs()
        assert [feed["image"].shape for feed in inputs] == [(1, 3, *size)] * 2


def test_a_folder_that_cannot_be_made_is_said_before_the_work(
    classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise DataError("the images were opened")

    monkeypatch.setattr(quantise, "QuantisationData", fail)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match=r"cannot write .*file"):
        foveal.export(Plain(), output=tmp_path / "file" / "a.onnx", size=(64, 64), int8=classes)


def test_impossible_requests(tmp_path: Path, classes: Path, cli: Command) -> None:
    output = tmp_path / "a.onnx"
    mistakes: tuple[tuple[dict[str, Any], str], ...] = (
        ({"max_loss": 1.0}, "max_loss=1.0 is for int8"),
        ({"calibration_images": 5}, "calibration_images=5 is for int8"),
        ({"int8": classes, "half": True}, "one type"),
        ({"int8": classes, "max_loss": -1.0}, "give 0 or more points"),
        ({"int8": classes, "calibration_images": 0}, "give 1 or more"),
    )
    for options, message in mistakes:
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
