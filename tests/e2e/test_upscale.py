"""``foveal upscale`` as a user meets it: files of every kind, folders with a bad one, one line for a mistake."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import foveal
from foveal import assets
from foveal.evaluation.fidelity import psnr
from foveal.factory.create import create_model
from foveal.images.reading import read_image
from foveal.info import info_of
from foveal.weights.checkpoints import save_checkpoint
from helpers.commands import Command


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights: what is tested here is everything around them."""
    torch.manual_seed(0)
    model = create_model("efficientvit_sr_w075", scale=2)
    path = tmp_path_factory.mktemp("weights") / "x2.safetensors"
    save_checkpoint(path, model.state_dict(), info_of(model).replace(tag="x2"))
    return path


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("street") / "street.png"
    Image.fromarray(read_image(assets.path("street", ".jpg"))[:300, :404]).save(path)
    return path


def test_one_photograph(cli: Command, weights: Path, street: Path, tmp_path: Path) -> None:
    """Windows, exact ones, how close they come, and a picture to compare with."""
    done = cli("upscale", street, "--model", weights, "--out", tmp_path, "--tile", 128, "--check-tiles", "--compare")
    assert done.returncode == 0, done.stderr
    large = read_image(tmp_path / "street.png")
    assert large.shape == (600, 808, 3)
    assert "tiles compared with the whole image" in done.stdout
    with Image.open(tmp_path / "street.compare.png") as comparison:
        assert comparison.size == (2 * 480 + 4, 480)
        halves = np.asarray(comparison)[:, :480], np.asarray(comparison)[:, 484:]
    middle = foveal.load("bicubic.x2")(read_image(street)[30:270, 82:322]).image, large[60:540, 164:644]
    for half, plain in zip(halves, middle, strict=True):
        changed = np.abs(half.astype(int) - plain).max(2) > 64
        assert 50 < changed.sum() < 0.1 * changed.size, "each side has its name and is otherwise the picture"
    exact = cli(
        "upscale", street, "--model", weights, "--out", tmp_path / "exact", "--tile", 128, "--exact", "--check-tiles",
        "--json",
    )  # fmt: skip
    report = json.loads(exact.stdout)["images"][0]
    assert report["size"] == [600, 808]
    assert report["tiles_psnr"] is None or report["tiles_psnr"] > 70, "no number: every pixel is the same"
    assert psnr(read_image(tmp_path / "exact" / "street.png"), large) > 50


def test_a_folder_with_a_damaged_file(cli: Command, weights: Path, street: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    picture = Image.open(street).crop((0, 0, 60, 50))
    picture.save(folder / "a.jpg")
    picture.convert("LA").save(folder / "b.png")
    (folder / "c.jpg").write_bytes((folder / "a.jpg").read_bytes()[:500])
    done = cli("upscale", folder, "--model", weights, "--out", tmp_path / "out", "--json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert [Path(image["image"]).name for image in report["images"]] == ["a.jpg", "b.png"]
    assert "c.jpg" in report["failed"][0]["error"]
    with Image.open(tmp_path / "out" / "b.png") as grey:
        assert (grey.mode, grey.size) == ("LA", (120, 100))
    again = cli("upscale", folder, "--model", weights, "--out", tmp_path / "out", "--resume", "--json")
    assert json.loads(again.stdout)["images"] == []


def test_interpolation_by_name(cli: Command, street: Path, tmp_path: Path) -> None:
    done = cli("upscale", street, "--model", "lanczos", "--scale", 3, "--out", tmp_path, "--format", "jpg")
    assert done.returncode == 0, done.stderr
    assert read_image(tmp_path / "street.jpg").shape == (900, 1212, 3)


def test_predict_knows_the_task(cli: Command, weights: Path, street: Path, tmp_path: Path) -> None:
    done = cli("predict", street, "--model", weights, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_image(tmp_path / "street.png").shape == (600, 808, 3)


def test_mistakes_get_one_line(cli: Command, weights: Path, street: Path, tmp_path: Path) -> None:
    rgba = tmp_path / "clear.png"
    Image.fromarray(np.zeros((40, 40, 4), np.uint8)).save(rgba)
    cases = {
        ("--model", weights, "--scale", 4): "enlarges 2 times",
        ("--model", weights, "--tile", 100): "tile=100",
        ("--model", "bicubic", "--exact"): "exact tiles need a torch model",
        ("--model", weights, "--exact", "--runtime", "native"): "--exact --runtime native needs --format tif",
        ("--model", "efficientvit_b0.camvid"): "use foveal segment",
        ("--model", weights, "--out", street.parent): "would overwrite the image",
    }
    for options, message in cases.items():
        done = cli("upscale", street, *options)
        assert done.returncode == 2, options
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    done = cli("upscale", rgba, "--model", weights, "--out", tmp_path / "out", "--format", "jpg")
    assert (done.returncode, "JPEG has no transparency" in done.stderr) == (2, True)


def test_evaluation_prints_the_protocol(cli: Command, weights: Path, street: Path, tmp_path: Path) -> None:
    for name in ("seta", "setb"):
        (tmp_path / name).mkdir()
        Image.open(street).save(tmp_path / name / "street.png")
    done = cli("evaluate", weights, tmp_path, "--out", tmp_path / "scores")
    assert done.returncode == 0, done.stderr
    for text in ("seta", "setb", "x2", "MATLAB's imresize", "2 px"):
        assert text in done.stdout
    report = json.loads((tmp_path / "scores" / "report.json").read_text())
    assert report["sets"]["seta"]["channel"] == "Y of RGB"
    assert len(report["per_image"]) == 2
