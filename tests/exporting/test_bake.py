"""Baked files take decoded images and give what the predictor gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import foveal
from foveal import assets
from foveal.exporting.bake import BakedNetwork
from foveal.exporting.image import ImageNetwork
from foveal.images.preparing import prepare
from foveal.info import ModelInfo, Preprocess, attach
from foveal.prediction.openvino_runner import openvino_core
from foveal.prediction.predictor import Predictor
from foveal.prediction.torch_runner import TorchRunner
from helpers import golden, upscalers
from helpers.narrow import Plain, narrow

Run = Callable[[NDArray[np.uint8]], NDArray[Any]]


@pytest.fixture(scope="module")
def street() -> NDArray[np.uint8]:
    return np.asarray(Image.open(assets.path("street", ".jpg")).convert("RGB"))


def predictor_of(model: torch.nn.Module, **preprocess: Any) -> Predictor:
    info: Any = model.foveal_info
    return Predictor(
        TorchRunner(model), info.replace(preprocess=dataclasses.replace(info.preprocess, **preprocess)), "torch"
    )


@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
@pytest.mark.parametrize("kind", [{}, {"crop_ratio": 0.875}, {"crop_ratio": 0.95, "squash": True}])
def test_resizing_is_that_of_pillow(kind: dict[str, Any], resample: str, street: NDArray[np.uint8]) -> None:
    """Equal but for values between two levels of the 8 bits, which are frequent where an image is enlarged."""
    preprocess = Preprocess(size=(96, 112), resample=resample, **kind)
    network = BakedNetwork(torch.nn.Identity(), ModelInfo("x", "upscale", preprocess=preprocess), (96, 112))
    for image in (street[:301, :407], street[:200, 300:495], street[:50, :60], street[:96, :112]):
        expected = prepare(image, preprocess)
        pixels = torch.from_numpy(image[None].copy()).permute(0, 3, 1, 2).float()
        found = (network._resized(pixels, 96, 112) * network.gain - network.shift).numpy()
        levels = np.abs(found - expected) * 255 * np.array(preprocess.std)[:, None, None]
        assert levels.max() < 1.1
        assert (levels > 0.5).mean() < 0.03


@pytest.mark.parametrize("size", [None, (64, 96)])
def test_masks_are_those_of_the_predictor(size: tuple[int, int] | None, street: NDArray[np.uint8]) -> None:
    model = golden.fill(narrow("segment", 5))
    network = BakedNetwork(ImageNetwork(model, upsample=False), model.foveal_info, size)
    predictor = predictor_of(model, size=size)
    for image in (street[:301, :407], street[40:104, 500:597], street[:33, :200]):
        with torch.inference_mode():
            found = network(torch.from_numpy(image[None].copy())).numpy()
        assert (found.dtype, found.shape) == (np.uint8, (1, *image.shape[:2]))
        assert (found[0] == predictor(image).mask).mean() >= 0.9999


def test_upscaled_images_are_those_of_the_predictor() -> None:
    model = upscalers.model_of("efficientvit_sr_w075")
    info: Any = model.foveal_info
    network, image = BakedNetwork(model, info, None), upscalers.photo(40, 52)
    with torch.inference_mode():
        found = network(torch.from_numpy(image[None])).numpy()
    expected = upscalers.predictor_of(model)(image).image.astype(int)
    assert np.abs(found[0] - expected).max() <= 1  # where a value lies between two levels
    assert (found[0] == expected).mean() >= 0.999


def run_onnx(path: Path) -> Run:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: np.asarray(session.run(None, {"image": image[None]})[0])[0]


def run_openvino(path: Path) -> Run:
    pytest.importorskip("openvino")
    compiled = openvino_core(path.name).compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda image: compiled(image[None])[0][0]


RUNS = {"onnx": run_onnx, "openvino": run_openvino}


def plain() -> Plain:
    """A classifier of images whose short side becomes 36 and whose centre of 32 is cropped."""
    model: Any = Plain()
    attach(model, model.foveal_info.replace(preprocess=Preprocess(size=(32, 32), crop_ratio=0.875)))
    return model


def test_classifiers_give_probabilities_of_any_image(tmp_path: Path, street: NDArray[np.uint8]) -> None:
    model = plain()
    report = foveal.export(model, output=tmp_path / "plain.onnx", size=(64, 64), bake=True)
    assert report.sizes[1] == (1, 37, 77)
    run = run_onnx(report.path)
    for image in (street[:301, :407], street[:200, 300:395], street[:20, :31]):
        assert np.abs(run(image) - predictor_of(model)(image).scores).max() < 1e-4
    session = onnxruntime.InferenceSession(report.path, providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    assert [facts[key] for key in ("input_type", "layout", "resize")] == ["uint8", "NHWC", "inside"]
    assert session.get_outputs()[0].name == "probabilities"
    with pytest.raises(foveal.ConfigError, match=r"plain\.onnx: it takes decoded images and gives results"):
        foveal.load(report.path)


def test_impossible_requests_are_refused(tmp_path: Path) -> None:
    model: Any = plain()
    with pytest.raises(foveal.ConfigError, match="native files have no preparation of images inside"):
        foveal.export(model, "native", output=tmp_path / "a.foveal", bake=True)
    attach(model, model.foveal_info.replace(preprocess=Preprocess(dtype="uint16")))
    with pytest.raises(foveal.ConfigError, match="bake: plain takes images of uint16"):
        foveal.export(model, output=tmp_path / "a.onnx", size=(64, 64), bake=True)
    with pytest.raises(foveal.ConfigError, match="leave upsample and int8 out"):
        foveal.export(narrow("segment"), output=tmp_path / "a.onnx", size=(64, 64), bake=True, upsample=True)
    with pytest.raises(foveal.ConfigError, match="bake: tf_efficientnet_lite0 is for 'prompt'"):
        foveal.export("tf_efficientnet_lite0.sam", output=tmp_path / "a.onnx", bake=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.parametrize("to", RUNS)
@pytest.mark.parametrize("size", [None, (64, 96)])
def test_files_segment_as_the_predictor(
    to: str, size: tuple[int, int] | None, tmp_path: Path, street: NDArray[np.uint8]
) -> None:
    """Of any size; and those that resize to a fixed size."""
    model = golden.fill(narrow("segment", 5))
    report = foveal.export(model, to, output=tmp_path, size=(64, 96), input_size=size, bake=True)
    run, predictor = RUNS[to](report.path), predictor_of(model, size=size)
    for image in (street, street[:301, :407], street[40:104, 500:597]):
        assert (run(image) == predictor(image).mask).mean() >= 0.9999


@pytest.mark.long
def test_files_upscale_as_the_predictor(tmp_path: Path) -> None:
    """A value between two levels may be rounded to the other one."""
    report = foveal.export("efficientvit_sr.x2", output=tmp_path / "sr.onnx", bake=True)
    run, predictor = run_onnx(report.path), foveal.load("efficientvit_sr.x2", runtime="torch")
    for image in (upscalers.photo(64, 64), upscalers.photo(97, 131)):
        expected, found = predictor(image).image.astype(int), run(image)
        assert np.abs(found - expected).max() <= 1
        assert (found == expected).mean() >= 0.999
