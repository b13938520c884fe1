"""Super-resolution networks: any size and scale, in tiles, and exported."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import foveal
from foveal.errors import CheckpointError, ConfigError, InputError
from foveal.evaluation.fidelity import fidelity, psnr
from foveal.factory.create import create_model, list_models
from foveal.factory.identify import identify
from foveal.images.reading import Picture
from foveal.images.resampling import bicubic_downscale, interpolated
from foveal.info import ModelInfo, info_of
from foveal.layers.reparam import fuse_branches
from foveal.prediction.predictor import Predictor
from foveal.prediction.tiles import enlarged_bands
from foveal.prediction.torch_runner import TorchRunner
from foveal.tasks.upscale import SCALES
from foveal.weights.checkpoints import save_checkpoint
from helpers.upscalers import model_of, photo, predictor_of

NAMES = list_models(task="upscale")


# ---- networks


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", SCALES)
def test_any_size_any_scale(name: str, scale: int) -> None:
    with torch.device("meta"):
        model = create_model(name, task="upscale", scale=scale, in_chans=5)
        for h, w in ((32, 32), (33, 65), (97, 40)):
            assert model(torch.empty(2, 5, h, w)).shape == (2, 5, scale * h, scale * w)


@pytest.mark.parametrize("name", NAMES)
def test_untrained_models_are_near_bicubic(name: str) -> None:
    """Because of the long residual, an untrained network is close to the interpolation."""
    torch.manual_seed(0)
    model = create_model(name).eval()
    image = photo(48, 40)
    expected = next(enlarged_bands(lambda x: interpolated(x, 2).astype(np.float32), Picture(image), 2))
    assert psnr(predictor_of(model).upscale(image).image, expected) > 25


def test_the_base_equals_the_interpolation_inside() -> None:
    """The kernel is MATLAB's, a = -0.5, not that of torch's bicubic."""
    model = create_model("realtime_sr", scale=3).double().eval()
    torch.nn.init.zeros_(model.head.subpixel.weight)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    torch.nn.init.zeros_(model.head.subpixel.bias)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    image = np.random.default_rng(0).random((40, 33, 3))
    with torch.no_grad():
        output = model(torch.from_numpy(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    inside = (slice(9, -9), slice(9, -9))
    np.testing.assert_allclose(output[inside], interpolated(image, 3)[inside], atol=1e-12)


@pytest.mark.parametrize("scale", SCALES)
def test_fused_branches_compute_the_same(scale: int) -> None:
    model = model_of("realtime_sr", scale)
    fused = copy.deepcopy(model)
    fuse_branches(fused)
    image = torch.rand(2, 3, 37, 50)
    with torch.no_grad():
        assert (model(image) - fused(image)).abs().max() < 1e-5
    count = [sum(p.numel() for p in m.parameters()) for m in (model, fused)]
    assert count[0] <= 150_000
    assert count[1] < 0.55 * count[0]
    again = create_model("realtime_sr", scale=scale, fused=True)
    foveal.load_checkpoint(again, fused.state_dict())
    assert identify(fused.state_dict()).options == {"fused": True, "scale": scale}


@pytest.mark.parametrize("name", NAMES)
def test_models_are_inferred_from_keys_and_shapes(name: str) -> None:
    for scale in SCALES:
        result = identify(
            {f"module.{k}": v for k, v in create_model(name, scale=scale, in_chans=4).state_dict().items()}
        )
        assert (result.model, result.task, result.in_chans) == (name, "upscale", 4)
        assert result.options["scale"] == scale
        assert result.preprocess.std == (1, 1, 1, 1)
    bare = identify(create_model(name, features_only=True).state_dict())
    assert (bare.model, bare.task) == (name, "features")


def test_the_trunk_starts_from_another_scale(tmp_path: Path) -> None:
    two = model_of("efficientvit_sr_w075", 2)
    save_checkpoint(tmp_path / "x2.safetensors", two.state_dict(), info_of(two))
    four = create_model("efficientvit_sr_w075", scale=4, weights=tmp_path / "x2.safetensors")
    assert four.head.subpixel.weight.shape[0] == 48  # pyright: ignore[reportAttributeAccessIssue, reportIndexIssue]
    for key, value in two.state_dict().items():
        if key.startswith("backbone."):
            assert torch.equal(four.state_dict()[key], value)


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(ConfigError, match="scale=5: give one of 1, 2, 3, 4"):
        create_model("efficientvit_sr", scale=5)
    with pytest.raises(ConfigError, match="efficientvit_sr is not for 'segment'"):
        create_model("efficientvit_sr", task="segment")
    with pytest.raises(ConfigError, match="efficientvit_b0 is not for 'upscale'"):
        create_model("efficientvit_b0", task="upscale")
    with pytest.raises(ConfigError, match="num_classes=7: efficientvit_sr makes images"):
        create_model("efficientvit_sr", num_classes=7)
    with pytest.raises(ConfigError, match="no option 'scal'; did you mean 'scale'"):
        create_model("efficientvit_sr", scal=2)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_gives_the_same_picture(name: str) -> None:
    """The PSNR to the ground truth is within 0.02 dB of that in float32."""
    large = photo(96, 128)
    small = bicubic_downscale(large, 2)
    model = model_of(name)
    figures = [
        fidelity(Predictor(TorchRunner(model, dtype=dtype), info_of(model), "torch").upscale(small).image, large, 2)[0]
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    ]
    assert abs(figures[2] - figures[0]) < 0.02


# ---- tiles


def test_tiles_of_a_local_model_are_exact() -> None:
    """With a receptive field smaller than the overlap, tiles and whole image give the same result, without seams."""
    image = photo(150, 210)
    for predictor in (foveal.load("bicubic.x3"), predictor_of(model_of("realtime_sr", 3))):
        whole = predictor.upscale(image, tile=216, overlap=0).image
        windows = predictor.upscale(image, tile=64, overlap=32).image
        assert np.abs(whole.astype(int) - windows).max() <= 1


def test_tiles_of_a_model_with_attention_are_close() -> None:
    image = photo(150, 210)
    predictor = predictor_of(model_of("efficientvit_sr"))
    whole = predictor.upscale(image, tile=216, overlap=0).image
    assert psnr(predictor.upscale(image, tile=96).image, whole) > 40


@pytest.mark.parametrize("size", [(150, 210), (257, 193)])
def test_exact_tiles_equal_the_whole_image(size: tuple[int, int]) -> None:
    """The sums of the attention come from the whole image, where plain tiles differ.

    In float64, since the outputs of these weights are up to 25 times the range of an image: float32 rounds by several
    levels, how many depends on the processor.
    """
    image = photo(*size)
    for name in ("realtime_sr", "efficientvit_sr_w075"):  # the others of each family have the same layers
        model = model_of(name)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.15 if parameter.ndim == 1 else 1.0 / parameter[0].numel() ** 0.5)
        predictor = predictor_of(model)
        predictor.runner = TorchRunner(model, dtype=torch.float64)
        windows: list[dict[str, Any]] = [{"tile": 320, "overlap": 0}, {"tile": 128, "exact": True}, {"tile": 128}]
        wide = image.astype(np.uint16) * 257
        whole, exact, plain = (predictor.upscale(wide, **how).image for how in windows)
        assert whole.std() > 500
        assert np.abs(whole.astype(int) - exact).max() <= 1  # of 65535
        assert name == "realtime_sr" or np.abs(whole.astype(int) - plain).max() > 40


def test_exact_tiles_need_the_torch_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exact tiles need a torch model"):
        foveal.load("bicubic.x2").upscale(photo(40, 40), exact=True)
    with pytest.raises(ConfigError, match="overlap=8: exact tiles overlap"):
        predictor_of(model_of("efficientvit_sr")).upscale(photo(40, 40), exact=True, overlap=8)


def test_impossible_tiles_are_refused() -> None:
    predictor = foveal.load("bicubic.x2")
    for tile, overlap in ((60, 0), (65, 0), (64, 40), (64, -1)):
        with pytest.raises(InputError, match=f"tile={tile}, overlap={overlap}"):
            predictor.upscale(photo(40, 40), tile=tile, overlap=overlap)


@pytest.mark.parametrize("name", [pytest.param("efficientvit_sr_w075", marks=pytest.mark.long), "realtime_sr"])
def test_export_gives_the_same_picture(name: str, tmp_path: Path) -> None:
    model = model_of(name, 2)
    exported = foveal.load(foveal.export(model, output=tmp_path / "x.onnx"))
    image = photo(45, 61)
    a, b = (p.upscale(image).image.astype(int) for p in (exported, predictor_of(model)))
    assert np.abs(a - b).max() <= 1


@pytest.mark.parametrize("scale", [None, "2", 0, True])
def test_a_description_without_its_scale_is_refused(scale: Any) -> None:
    info = info_of(model_of("realtime_sr", 2))
    text = info.replace(options={} if scale is None else {"scale": scale}).to_json()
    with pytest.raises(ConfigError, match="scale"):
        ModelInfo.from_json(text)


@pytest.mark.parametrize("scale", [1, 3])
def test_a_network_of_another_scale_is_refused(scale: int) -> None:
    """A smaller scale in the description would silently cut the picture."""
    model = model_of("realtime_sr", 2)
    info = info_of(model).replace(options={"scale": scale})
    with pytest.raises(CheckpointError, match=rf"scale {scale}"):
        Predictor(TorchRunner(model), info, "torch").upscale(photo(40, 50))
