"""Images of other bands than RGB, from files to the classes of an exported model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

import foveal
from foveal.images.preparing import prepare
from helpers.commands import Command
from helpers.narrow import registered

MODEL = ("--model", "efficientvit_narrow")
SHORT = ("--set.epochs", 2, "--set.batch_size", 2, "--set.crop", "[32, 32]", "--set.workers", 0, "--set.eval_every", 2)


@pytest.fixture(autouse=True, scope="module")
def _narrow() -> Iterator[None]:
    with registered(attention=False):
        yield


def save(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, image, photometric="minisblack", planarconfig="contig", compression="zlib")
    elif path.suffix == ".npy":
        np.save(path, image)
    else:
        Image.fromarray(image[..., 0]).save(path)
    return path


KINDS = [(".tif", 5, "uint16"), (".npy", 2, "float32"), (".png", 1, "uint16")]


def image_of(mask: np.ndarray, bands: int, dtype: str, rng: np.random.Generator) -> np.ndarray:
    """Noise, with a last band that is bright where the mask is 1."""
    image = rng.random((*mask.shape, bands)) * (1 if dtype == "float32" else 900)
    image[..., -1] += mask * (3.0 if dtype == "float32" else 5000.0)
    return image.astype(dtype)


@pytest.mark.parametrize(("suffix", "bands", "dtype"), KINDS)
def test_segmentation(tmp_path: Path, cli: Command, suffix: str, bands: int, dtype: str) -> None:
    rng, data, run = np.random.default_rng(0), tmp_path / "data", tmp_path / "run"
    for split in ("train", "val"):
        for index in range(4):
            mask = np.zeros((40, 48), np.uint8)
            mask[8:32, 4 * index : 28] = 1
            image = save(data / "images" / split / f"{index}{suffix}", image_of(mask, bands, dtype, rng))
            (data / "masks" / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(data / "masks" / split / f"{index}.png")
    (data / "dataset.yaml").write_text("names: [land, water]\n")
    assert cli("data", "stats", data, "--in-chans", bands, "--write").returncode == 0
    assert f"{bands} band" in cli("data", "check", data).stdout
    done = cli("train", data, *MODEL, "--out", run, *SHORT, "--set.in_chans", bands)
    assert done.returncode == 0, done.stderr
    assert "jitter and tint change colours and are left out" in done.stderr
    done = cli("evaluate", run, data, "--split", "val", "--out", tmp_path / "report", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 4
    predictor = foveal.load(run)
    assert (predictor.info.in_chans, predictor.info.preprocess.dtype) == (bands, dtype)
    assert predictor(image, tile=64).image.shape == (40, 48, bands)
    done = cli("segment", data / "images" / "val", "--model", run, "--out", tmp_path / "masks", "--overlay")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "masks" / "3.overlay.jpg").exists()
    Image.new("RGB", (48, 40)).save(tmp_path / "rgb.png")
    done = cli("segment", tmp_path / "rgb.png", "--model", run, "--out", tmp_path / "no")
    assert done.returncode == 2
    assert f"3 bands of uint8, but the model takes {bands} band" in done.stderr
    if suffix == ".tif":  # one export is enough: the description is the same for all
        check_export(predictor, run, data / "images" / "val", cli, tmp_path)


def check_export(predictor: foveal.Predictor, run: Path, images: Path, cli: Command, tmp_path: Path) -> None:
    exported = tmp_path / "model.onnx"
    assert cli("export", run, "--output", exported).returncode == 0
    assert foveal.load(exported).info.preprocess == predictor.info.preprocess
    assert cli("segment", images, "--model", exported, "--out", tmp_path / "onnx").returncode == 0
    for index in range(4):
        masks = [np.asarray(Image.open(tmp_path / out / f"{index}.png")) for out in ("masks", "onnx")]
        assert (masks[0] == masks[1]).all()


def test_classification_without_statistics(tmp_path: Path, cli: Command) -> None:
    rng, data, run = np.random.default_rng(0), tmp_path / "data", tmp_path / "run"
    for split in ("train", "val"):
        for index in range(4):
            image = (rng.random((36, 40, 4)) * (100 + 90 * (index % 2))).astype(np.uint8)
            save(data / split / ("dark", "light")[index % 2] / f"{index}.npy", image)
    done = cli("train", data, "--task", "classify", *MODEL, "--out", run, *SHORT)
    assert done.returncode == 0, done.stderr
    assert "4 bands of uint8: mean and standard deviation from 4 training images" in done.stderr
    assert cli("evaluate", run, data, "--split", "val").returncode == 0
    predictor, image = foveal.load(run), data / "val" / "dark" / "0.npy"
    assert predictor(image).scores.shape == (2,)
    values = np.load(image).astype(np.float64) / 255
    own = predictor.info.preprocess
    every = np.concatenate([np.load(file).reshape(-1, 4) for file in sorted((data / "train").rglob("*.npy"))]) / 255
    np.testing.assert_allclose(own.mean, every.mean(0), rtol=1e-5)
    whole = prepare(np.load(image), foveal.Preprocess(own.mean, own.std))[0]
    np.testing.assert_allclose(whole.transpose(1, 2, 0), (values - every.mean(0)) / every.std(0), atol=1e-4)
    done = cli("evaluate", "efficientvit_b0.camvid", data, "--split", "val")
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("segment", ("--set.in_chans", 4), "5 bands of uint8, but the model takes 4 bands"),
        ("segment", ("--set.options", "{in_chans: 5}"), "in_chans is a setting of its own"),
        ("upscale", ("--set.in_chans", 5), "take images of 3 channels"),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, cli: Command, task: str, options: tuple, message: str) -> None:
    data, rng = tmp_path / "data", np.random.default_rng(0)
    for index in range(2):
        bands = 3 if task == "upscale" else 5
        image = (rng.random((40, 48, bands)) * 255).astype(np.uint8)
        save(data / ("train" if task == "upscale" else "images/train") / f"{index}.npy", image)
        (data / "masks" / "train").mkdir(parents=True, exist_ok=True)
        if task == "segment":
            Image.fromarray(np.zeros((40, 48), np.uint8)).save(data / "masks" / "train" / f"{index}.png")
    if task == "segment":
        (data / "dataset.yaml").write_text("names: [land, water]\n")
    short = ("--set.epochs", 1, "--set.batch_size", 1, "--set.crop", "[32, 32]", "--set.val_split", "")
    model = ("--model", "efficientvit_b0" if task == "segment" else "efficientvit_sr")
    done = cli("train", data, "--task", task, *model, "--out", tmp_path / "run", *short, *options)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize("channels", [1, 5])
def test_weights_for_rgb_start_models_of_other_bands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], channels: int
) -> None:
    import torch

    from foveal.weights.checkpoints import save_checkpoint

    rgb = foveal.create_model("mobilenetv3_small_100", "classify", num_classes=3).eval()
    save_checkpoint(tmp_path / "rgb.safetensors", rgb.state_dict(), rgb.foveal_info)
    capsys.readouterr()
    model = foveal.create_model("mobilenetv3_small_100", weights=tmp_path / "rgb.safetensors", in_chans=channels).eval()
    assert f"weights for 3 image channels, model for {channels}" in capsys.readouterr().err
    grey = torch.randn(1, 1, 64, 64)
    with torch.inference_mode():
        if channels == 1:  # equal channels give the same result
            torch.testing.assert_close(model(grey), rgb(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)
    assert len(model.foveal_info.preprocess.mean) == channels
    with pytest.raises(foveal.FovealError, match="does not fit the model"):
        foveal.load_checkpoint(foveal.create_model("mobilenetv3_small_100", in_chans=channels), rgb.state_dict())
