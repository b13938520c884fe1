"""Files of one size, or of sizes up to a limit, take images of any size and any number of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import foveal
from foveal.errors import ConfigError, InputError
from foveal.info import ModelInfo
from foveal.prediction.input_limits import KEY, InputLimits, LimitedNetwork, fitted
from foveal.prediction.predictor import Predictor
from foveal.prediction.torch_runner import TorchRunner
from helpers.narrow import Plain, narrow

SIZES = [(40, 56), (64, 96), (33, 200), (201, 97), (130, 260)]


class Local:
    """A network whose output depends on the pixels below it alone, and the shapes that it was called with."""

    def __init__(self, stride: int = 1, scale: int = 1) -> None:
        self.stride, self.scale, self.shapes = stride, scale, []

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        self.shapes.append(batch.shape)
        return batch[:, :, :: self.stride, :: self.stride].repeat(self.scale, 2).repeat(self.scale, 3) * 2


def images(count: int, height: int, width: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((count, 3, height, width)).astype(np.float32)


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_a_local_network_gives_the_same_in_any_size_and_number(fixed: bool, size: tuple[int, int]) -> None:
    limits = InputLimits((64, 96), 2, fixed)
    network, info = Local(stride=8), ModelInfo(task="segment", output_stride=8)
    batch = images(3, *size)
    found = fitted(network, limits, info)(batch)
    np.testing.assert_allclose(found, Local(stride=8)(batch), rtol=1e-6)
    if fixed:
        assert set(network.shapes) == {(2, 3, 64, 96)}
    else:
        assert all(count <= 2 and height <= 64 and width <= 96 for count, _, height, width in network.shapes)


def test_upscaled_images_are_padded_and_larger_ones_need_tiles() -> None:
    info = ModelInfo(task="upscale", options={"scale": 2})
    run = fitted(Local(scale=2), InputLimits((64, 96), 1, fixed=True), info)
    batch = images(2, 40, 56)
    np.testing.assert_array_equal(run(batch), Local(scale=2)(batch))
    with pytest.raises(InputError, match=r"an image of 65x96: this file takes images of 64x96 \(H x W\): give tiles"):
        run(images(1, 65, 96))


@pytest.mark.parametrize("size", [(64, 64), (32, 48)])
def test_classifiers_take_one_size(size: tuple[int, int]) -> None:
    run = fitted(Local(), InputLimits((32, 32), 1, fixed=True), ModelInfo(task="classify"))
    with pytest.raises(InputError, match=r"this file takes images of 32x32"):
        run(images(1, *size))


def test_limits_travel_in_the_description() -> None:
    for limits in (InputLimits(), InputLimits((64, 96), 2, True), InputLimits((1024, 2048), None)):
        info = ModelInfo("plain", "segment", notes=limits.to_notes())
        assert InputLimits.of(ModelInfo.from_json(info.to_json())) == limits


@pytest.mark.parametrize(
    "noted",
    [
        {},
        [64, 96],
        {"size": [64], "batch": 1, "fixed": True},
        {"size": [64, 0], "batch": 1, "fixed": True},
        {"size": [64, 1 << 20], "batch": 1, "fixed": True},
        {"size": [64, 96], "batch": 0, "fixed": True},
        {"size": [64, 96], "batch": 1, "fixed": 1},
        {"size": [64.0, 96], "batch": 1, "fixed": True},
    ],
)
def test_wrong_limits_are_one_line(noted: object) -> None:
    with pytest.raises(ConfigError, match="the description cannot be read: input_limits="):
        InputLimits.of(ModelInfo(notes={KEY: noted}))


@pytest.fixture(scope="module")
def model() -> Any:
    return narrow("segment", attention=False)


@pytest.fixture(scope="module")
def fixed_file(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fixed") / "a.onnx"
    return foveal.export(model, output=path, input_size=(64, 96), batch=2).path


def test_a_file_of_fixed_size_segments_any_image(fixed_file: Path) -> None:
    predictor = foveal.load(fixed_file)
    assert "images of 64x96 (H x W)" in repr(predictor)
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((40, 56), (64, 96), (130, 260))]
    for image, result in zip(pixels, predictor(pixels, batch_size=3), strict=True):
        assert result.mask.shape == image.shape[:2]
    with pytest.raises(InputError, match=r"tile=96: this file takes images of 64x96 \(H x W\): give a smaller tile"):
        predictor.segment(pixels[2], tile=96)
    assert predictor.segment(pixels[2], tile=64).mask.shape == (130, 260)


def test_a_file_of_fixed_size_equals_the_model_where_the_image_has_that_size(model: Any, fixed_file: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    expected = Predictor(TorchRunner(model), model.foveal_info, "torch")(image).logits
    np.testing.assert_allclose(foveal.load(fixed_file)(image).logits, expected, atol=1e-4 * np.abs(expected).max())


def test_classifiers_of_fixed_size_resize_images_to_it(tmp_path: Path) -> None:
    path = foveal.export(Plain(), output=tmp_path / "a.onnx", input_size=(32, 48)).path
    predictor = foveal.load(path)
    assert predictor.info.preprocess.size == (32, 48)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 90, 3), np.uint8))
    assert np.isfinite(predictor(image).scores).all()


@pytest.mark.parametrize("side", [4, 8])
def test_files_that_are_too_small_for_tiles_are_refused(side: int) -> None:
    info = ModelInfo("m", "segment", num_classes=2, output_stride=8)
    limits = InputLimits((side, side), 1, fixed=True)
    network = LimitedNetwork(lambda batch: np.zeros((len(batch), 2, 1, 1), np.float32), limits, info)
    with pytest.raises(InputError, match="too small for tiles"):
        network(np.zeros((1, 3, 64, 64), np.float32))
