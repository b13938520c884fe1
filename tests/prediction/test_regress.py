"""Results of regression: values at the image's size, files that are read back, pictures, tiles, exported formats."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import foveal
from foveal.data.targets import read_target
from foveal.errors import ConfigError, InputError
from foveal.exporting.formats import FORMATS
from foveal.images.preparing import prepare
from foveal.info import Labels, Target, attach, info_of
from foveal.prediction.regress import RegressResult
from foveal.tasks.regress import RegressionHead, RegressionModel
from foveal.weights.checkpoints import save_checkpoint
from helpers.narrow import CONVOLUTIONS, registered

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 255, (70, 100, 3), np.uint8)


def small(output: str = "softplus", kind: str = "depth", name: str = "efficientvit_b0", attention: bool = False) -> Any:
    """A narrow model with weights at random and the description of a trained one."""
    from foveal.models.efficientvit import EfficientViT
    from helpers.narrow import NARROW

    torch.manual_seed(0)
    channels = 3 if kind == "normals" else 1
    backbone = EfficientViT(NARROW if attention else CONVOLUTIONS, 3)
    head = RegressionHead(backbone.feature_info, channels, output=output, width=8, depth=1)
    head.set_statistics([3.0] * channels, [1.5] * channels)
    model = RegressionModel(backbone, head).eval()
    made = foveal.ModelInfo(
        name,
        "regress",
        channels,
        options={"output": output},
        output_stride=model.stride,
        target=Target(kind, "m", 0.001, 0.0),
    )
    attach(model, made.replace(labels=Labels(made.target.names(channels))))
    return model


def predictor(model: Any) -> foveal.Predictor:
    from foveal.prediction.torch_runner import torch_runner

    return foveal.Predictor(torch_runner(model, "cpu"), info_of(model), "torch")


def result(values: np.ndarray, target: Target, unit_length: bool = False) -> RegressResult:
    """A result whose map has one position per pixel."""
    image = np.zeros((*values.shape[1:], 3), np.uint8)
    names = target.names(len(values))
    return RegressResult(image, values.astype(np.float32), (1.0, 1.0), target, names, unit_length)


@torch.no_grad()
@pytest.mark.parametrize(("output", "kind"), [("softplus", "depth"), ("unit", "normals")])
def test_values_are_those_of_the_model(output: str, kind: str) -> None:
    """Upsampling in NumPy gives what the torch model gives; sizes that no stride divides, and less than 32 pixels.

    The model interpolates its last positions with those of the padding, which the predictor does not have.
    """
    model = small(output, kind)
    for image, last in ((PICTURE[:64, :96], 0), (PICTURE, model.stride), (PICTURE[:67, :45], model.stride)):
        found = predictor(model).regress(image)
        expected = model(torch.from_numpy(prepare(image, info_of(model).preprocess)))[0].permute(1, 2, 0).numpy()
        assert found.values.dtype == np.float32
        height, width = (side - last for side in image.shape[:2])
        np.testing.assert_allclose(found.values[:height, :width], expected[:height, :width], rtol=1e-4, atol=1e-5)
    assert predictor(model)(PICTURE[:20, :9]).values.shape == (20, 9, 3 if kind == "normals" else 1)
    assert "channels (" in repr(predictor(model))


def test_tiles_of_one_place_change_nothing() -> None:
    whole = predictor(small()).regress(PICTURE).values
    tiled = predictor(small()).regress(PICTURE, tile=128, overlap=0).values
    np.testing.assert_allclose(tiled, whole, rtol=1e-4)
    parts = predictor(small()).regress(PICTURE, tile=64).values
    assert parts.shape == whole.shape
    assert np.abs(parts - whole).mean() < 0.1 * whole.mean()
    with pytest.raises(ConfigError, match="flip, scales: the mean over copies is for segmentation"):
        predictor(small())(PICTURE, flip=True)
    with pytest.raises(InputError, match="overlap=8 needs tiles"):
        predictor(small())(PICTURE, overlap=8)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("suffix", [".tif", ".npy", ".exr"])
def test_files_hold_the_values(tmp_path: Path, channels: int, suffix: str) -> None:
    """Of more than one TIFF tile; another library reads the TIFF."""
    if suffix == ".exr":
        pytest.importorskip("OpenEXR", reason="the extra exr")
    made = result(RNG.normal(size=(channels, 300, 270)), Target("values", "K"))
    path = made.save(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(read_target(path, made.target), made.values)
    if suffix == ".tif":
        import tifffile

        np.testing.assert_array_equal(tifffile.imread(path).reshape(made.values.shape), made.values)


def test_png_files_have_the_scale_of_the_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    depth = RNG.uniform(0.5, 9, (1, 20, 30))
    depth[0, 0, :3] = 70, 80, 0.0001
    made = result(depth, Target("depth", "m", 0.001, 0))
    with caplog.at_level(logging.WARNING, "foveal"):
        path = made.save(tmp_path / "a.png")
    assert "3 of 600 pixels clipped to the range of 16 bits" in caplog.text
    assert np.asarray(Image.open(path)).dtype == np.uint16
    np.testing.assert_allclose(read_target(path, made.target)[1:], made.values[1:], atol=0.00051)
    caplog.clear()
    finer = made.save(tmp_path / "b.png", scale=0.01)
    assert "b.png: 1 of 600 pixels clipped" in caplog.text
    np.testing.assert_allclose(read_target(finer, Target("depth", "m", 0.01, 0))[1:], made.values[1:], atol=0.0051)


@pytest.mark.parametrize(
    ("channels", "target", "name", "options", "message"),
    [
        (1, Target("depth", "m"), "a.png", {}, "the value of one step is not known: give scale, or write .tif"),
        (2, Target("values", scale=1.0), "a.png", {}, "a PNG has 1, 3 or 4 channels, not 2"),
        (1, Target(), "a.jpg", {}, "values are written as .png, .tif, .tiff, .npy, .exr"),
        (1, Target(), "a.npy", {"scale": 2.0}, "scale=2 is for .png files"),
    ],
)
def test_files_that_cannot_hold_them(
    tmp_path: Path, channels: int, target: Target, name: str, options: dict[str, float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        result(np.ones((channels, 4, 5)), target).save(tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


def test_pictures() -> None:
    depth = result(np.linspace(1, 2, 600).reshape(1, 20, 30), Target("depth")).picture()
    assert (depth.mode, depth.size) == ("RGB", (30, 20))
    light = np.asarray(depth).astype(int).sum(2)
    assert light[0, 5] > light[-1, -5]  # near is light
    normal = result(np.broadcast_to(np.array([0.0, 0, -2])[:, None, None], (3, 4, 5)), Target("normals"), True)
    assert np.asarray(normal.picture())[0, 0].tolist() == [128, 128, 0]
    cut = result(np.full((1, 4, 5), 0.5), Target("alpha")).picture()
    assert (cut.mode, cut.getpixel((0, 0))) == ("RGBA", (0, 0, 0, 128))


# ---- exported files


@pytest.mark.parametrize(
    ("format", "size"),
    [
        ("onnx", "size"),
        ("openvino", "size"),
        ("native", "size"),
        pytest.param("executorch", "size", marks=pytest.mark.long),
        pytest.param("litert", "input_size", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize(("output", "kind"), [("softplus", "depth"), ("unit", "normals"), ("sigmoid", "alpha")])
def test_exported_files_give_the_same(tmp_path: Path, format: str, size: str, output: str, kind: str) -> None:
    """Of an image of any size, or of the only size that the file takes."""
    package = {"executorch": "executorch", "litert": "litert_torch"}.get(format)
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    model, picture = small(output, kind), PICTURE if size == "size" else PICTURE[:64, :96]
    path = tmp_path / f"a{FORMATS[format].suffixes[0]}"
    file = foveal.export(model, to=format, output=path, **{size: (64, 96)})
    loaded = foveal.load(file.path)
    assert loaded.info.target == info_of(model).target
    found, expected = loaded.regress(picture).values, predictor(model).regress(picture).values
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_upsampled_files_give_values_at_the_size_of_the_image(tmp_path: Path) -> None:
    model = small("unit", "normals")
    file = foveal.export(model, output=tmp_path / "a.onnx", size=(64, 96), upsample=True)
    values = foveal.load(file.path).runner(np.ones((1, 3, 70, 100), np.float32))
    assert values.shape == (1, 3, 70, 100)
    np.testing.assert_allclose(np.linalg.norm(values, axis=1), 1, atol=1e-5)
    found = foveal.load(file.path).regress(PICTURE).values
    np.testing.assert_allclose(found, predictor(model).regress(PICTURE).values, rtol=1e-3, atol=1e-4)
    with pytest.raises(ConfigError, match=r"bake: .* is for 'regress'; give a model for"):
        foveal.export(model, output=tmp_path / "b.onnx", bake=True)


@pytest.mark.parametrize("format", [pytest.param("onnx", marks=pytest.mark.long), "openvino"])
def test_int8(tmp_path: Path, format: str) -> None:
    """The loss is that of the maps. The file in float32, which OpenVINO reads until the end, is not overwritten."""
    model = small("softplus", attention=False)
    data, output = tmp_path / "data", tmp_path / f"a{FORMATS[format].suffixes[0]}"
    for split in ("train", "val"):
        (data / split / "images").mkdir(parents=True)
        (data / split / "depth").mkdir()
        for index in range(3):
            image = np.roll(PICTURE[:64, :96], 9 * index + len(split), axis=1)
            Image.fromarray(image).save(data / split / "images" / f"{index}.png")
            np.save(data / split / "depth" / f"{index}.npy", predictor(model).regress(image).values)
    report = foveal.export(model, format, output=output, size=(64, 96), int8=data, max_loss=20)
    measured = report.quantisation
    assert measured is not None
    assert (measured.metric, measured.split, measured.images) == ("similarity", "val", 3)
    assert measured.before > 99.99
    assert 80 < measured.after < measured.before
    loaded = foveal.load(report.path)
    assert "int8" in loaded.runtime
    found, expected = loaded.regress(PICTURE).values, predictor(model).regress(PICTURE).values
    assert 0 < np.abs(found - expected).max() < 0.2 * expected.mean()
    assert foveal.evaluate(report.path, data, split="val").scores.similarity * 100 == pytest.approx(measured.after)


def test_a_checkpoint_keeps_statistics_and_target(tmp_path: Path) -> None:
    with registered(attention=False) as name:
        model = foveal.create_model(name, "regress", output="softplus").eval()
        model.head.set_statistics([4.0], [2.0])
        info = info_of(model).replace(target=Target("depth", "m", 0.001), labels=Labels(("depth",)))
        save_checkpoint(tmp_path / "a.safetensors", model.state_dict(), info)
        found = foveal.load(tmp_path / "a.safetensors").regress(PICTURE)
        assert (found.target, found.names) == (Target("depth", "m", 0.001), ("depth",))
        attach(model, info)
        np.testing.assert_allclose(found.values, predictor(model).regress(PICTURE).values, rtol=1e-5)
