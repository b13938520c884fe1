"""``foveal segment --exact``: masks of the whole image, the report, and options that do not go with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

import foveal
from helpers.commands import Command
from helpers.streams import stripes


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two images, and the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in" / "a.tif", stripes(70, 99), photometric="rgb", tile=(64, 64))
    Image.fromarray(stripes(64, 40)).save(tmp_path / "in" / "b.png")
    return tmp_path


def test_a_single_image(cli: Command, images: Path) -> None:
    done = cli("segment", "in/a.tif", "--exact", "--json", "--tile", 64)
    assert done.returncode == 0, done.stderr
    (report,) = json.loads(done.stdout)["images"]
    assert report["size"] == [70, 99]
    assert report["files"] == ["foveal-out/a.tif"]
    whole = foveal.load("efficientvit_b0.camvid", runtime="torch").segment(images / "in" / "a.tif")
    assert (np.asarray(Image.open("foveal-out/a.tif")) == whole.mask).mean() > 0.9999
    assert [each["name"] for each in report["classes"]] == [name for name, _, _ in whole.shares()]
    assert sorted(path.name for path in Path("foveal-out").iterdir()) == ["a.tif"]


def test_a_folder_and_resume(cli: Command, images: Path) -> None:
    assert cli("segment", "in", "--exact", "--out", "masks").returncode == 0
    assert sorted(path.name for path in Path("masks").iterdir()) == ["a.tif", "b.tif"]
    (images / "in" / "c.png").write_bytes(b"no image")
    done = cli("segment", "in", "--exact", "--out", "masks", "--resume")
    assert done.returncode == 1
    assert "c.png: not an image" in done.stderr
    assert "2 of 3 images, 2 done before" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--legend"], "--legend does not go with --exact"),
        (["--overlap", 8], "--overlap does not go with --exact"),
        (["--runtime", "openvino"], "--exact runs with torch, native or onnxruntime, not with openvino"),
        (["--tile", 100], "tile=100: pieces of this model have multiples of 32 pixels: give 96"),
        (["--out", "x.jpg"], "--out x.jpg: the result is a .tif file"),
    ],
    ids=str,
)
def test_options_that_do_not_go_with_it(cli: Command, images: Path, options: list[object], message: str) -> None:
    done = cli("segment", "in/a.tif", "--exact", *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert not list(images.glob("foveal-out/*"))


def test_keep_needs_exact(cli: Command, images: Path) -> None:
    done = cli("segment", "in/a.tif", "--keep", "float16")
    assert (done.returncode, done.stderr) == (2, "foveal: --keep float16 goes with --exact\n")


def test_upscale_to_tiff(cli: Command, images: Path) -> None:
    done = cli("upscale", "in/a.tif", "--exact", "--format", "tif")
    assert done.returncode == 0, done.stderr
    whole = foveal.load("efficientvit_sr.x2", runtime="torch").upscale(images / "in" / "a.tif").image
    assert np.abs(np.asarray(Image.open("foveal-out/a.tif")).astype(int) - whole).max() <= 1
    tifffile.imwrite("in/wide.tif", stripes(40, 40).astype(np.uint16), photometric="rgb")
    done = cli("upscale", "in/wide.tif", "--exact", "--format", "tif")
    assert done.returncode == 2
    assert "wide.tif: 3 bands of uint16; images are streamed to larger ones from RGB of 8 bits alone" in done.stderr


def test_tiles_are_checked(cli: Command, images: Path) -> None:
    """The share is that of the pixels of both masks; the file is that of the tiles; nothing else is left."""
    source = images / "in" / "big.png"
    Image.fromarray(stripes(200, 260)).save(source)
    model = "efficientvit_b0.camvid"
    done = cli("segment", source, "--tile", 96, "--check-tiles", "--json", "--no-overlay", "--runtime", "torch")
    assert done.returncode == 0, done.stderr
    predictor = foveal.load(model, runtime="torch")
    tiles, exact = predictor.segment(source, tile=96).mask, foveal.stream(predictor, source).outputs[0]
    share = float((tiles == exact).mean())
    assert 0.2 < share < 1
    assert json.loads(done.stdout)["tiles_agreement"] == round(share, 6)
    assert np.array_equal(np.asarray(Image.open("foveal-out/big.png")), tiles)
    assert [path.name for path in Path("foveal-out").iterdir()] == ["big.png"]
    done = cli("segment", source, "--tile", 96, "--check-tiles", "--no-overlay")
    assert done.returncode == 0, done.stderr
    assert f"tiles agree with the exact result on {share:.1%}"[:-2] in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["in/a.tif", "--check-tiles"], "--check-tiles is for a single image and goes with --tile"),
        (["in", "--tile", 64, "--check-tiles"], "--check-tiles is for a single image and goes with --tile"),
        (["in/a.tif", "--exact", "--check-tiles"], "--check-tiles does not go with --exact"),
        (
            ["in/a.tif", "--tile", 64, "--check-tiles", "--runtime", "openvino"],
            "--check-tiles runs with torch, native or onnxruntime",
        ),
        (["in/a.tif", "--level", 1], "--level 1 goes with --exact"),
        (["in/a.tif", "--exact", "--level", 1], "a.tif: level 1, but its levels are 0 to 0"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(cli: Command, images: Path, options: list[object], message: str) -> None:
    done = cli("segment", *options)
    assert (done.returncode, message in done.stderr, done.stderr.count("\n")) == (2, True, 1), done.stderr


def test_level_of_a_pyramid(cli: Command, images: Path) -> None:
    with tifffile.TiffWriter("in/p.tif") as file:
        for power in range(2):
            image = stripes(140, 198)[:: 1 << power, :: 1 << power]
            file.write(image, photometric="rgb", tile=(64, 64), subfiletype=power)
    done = cli("segment", "in/p.tif", "--exact", "--level", 1, "--out", "mask.npy")
    assert done.returncode == 0, done.stderr
    whole = foveal.load("efficientvit_b0.camvid", runtime="torch").segment(stripes(140, 198)[::2, ::2])
    assert (np.load("mask.npy") == whole.mask).mean() > 0.9999


def test_convolutions_in_the_native_engine(cli: Command, images: Path) -> None:
    done = cli("segment", "in/a.tif", "--exact", "--runtime", "native", "--out", "mask.npy", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["runtime"].endswith(", convolutions in the native engine")
    whole = foveal.load("efficientvit_b0.camvid", runtime="torch").segment(images / "in" / "a.tif")
    assert (np.load("mask.npy") == whole.mask).mean() > 0.9999
