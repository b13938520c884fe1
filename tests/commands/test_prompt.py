"""``foveal prompt`` as a user meets it: files, exit codes, one line for a mistake."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

import foveal
from foveal.images.reading import read_image
from foveal.weights.checkpoints import save_checkpoint
from helpers.commands import Command
from helpers.oracle import sure_network


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = sure_network()
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_checkpoint(path, model.state_dict(), model.foveal_info)
    return path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """Lies on its side, as cameras store it: 60 x 80 pixels, 80 x 60 upright."""
    y, x = np.mgrid[:60, :80]
    image = np.stack([x * 3, y * 4, (x // 20 + y // 15) % 2 * 200], -1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image).save(tmp_path / "photo.jpg", exif=exif)
    return tmp_path / "photo.jpg"


def test_points_and_a_box(cli: Command, model: Path, photo: Path, tmp_path: Path) -> None:
    """They are one prompt; coordinates are those of the upright image."""
    out, overlay = tmp_path / "new" / "mask.png", tmp_path / "new" / "overlay.jpg"
    done = cli(
        "prompt", photo, "--point", "20,70", "--point", "50,10:0", "--background", "5,5", "--box", "2,40,58,79",
        "--model", model, "--out", out, "--overlay", overlay, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    embedding = foveal.load(model).encode(photo)
    expected = embedding.prompt([[20, 70], [50, 10], [5, 5]], [1, 0, 0], [2, 40, 58, 79])
    assert report["size"] == [80, 60] == list(expected.size)
    assert report["files"] == [str(out), str(overlay)]
    written = read_image(out)[..., 0]
    np.testing.assert_array_equal(written, np.where(expected.best, 255, 0))
    assert read_image(overlay).shape == (80, 60, 3)
    assert [row["written"] for row in report["masks"]] == [i == expected.iou.argmax() for i in range(3)]
    for row, mask, iou in zip(report["masks"], expected.masks, expected.iou, strict=True):
        assert row["predicted_iou"] == pytest.approx(float(iou), abs=1e-5)
        assert row["area"] == mask.sum()
        x1, y1, x2, y2 = row["box"]
        assert mask[y1:y2, x1:x2].sum() == mask.sum()


def test_one_mask_and_a_table(cli: Command, model: Path, photo: Path, tmp_path: Path) -> None:
    done = cli("prompt", photo, "--box", "2,40,58,79", "--single", "--model", model, "--out", tmp_path / "m.png")
    assert done.returncode == 0, done.stderr
    assert "predicted IoU" in done.stdout
    assert "1 (written)" in done.stdout
    assert "2 " not in [line[:2] for line in done.stdout.splitlines()]
    assert done.stdout.splitlines()[-1] == str(tmp_path / "m.png")


def test_a_chosen_mask(cli: Command, model: Path, photo: Path, tmp_path: Path) -> None:
    """The table has the largest mask first; any of the three can be written."""
    expected = foveal.load(model).encode(photo).prompt([[20, 70]], [1])
    arguments = ["prompt", photo, "--point", "20,70", "--model", model, "--out", tmp_path / "m.png"]
    for mask in (1, 3):
        done = cli(*arguments, "--mask", mask)
        assert done.returncode == 0, done.stderr
        rows = [line.split() for line in done.stdout.splitlines() if line.strip()[:1] in ("1", "2", "3")]
        assert [int(row[0]) - 1 for row in rows] == expected.by_area.tolist()
        assert [int(row[0]) for row in rows if "(written)" in row] == [mask]
        written = read_image(tmp_path / "m.png")[..., 0]
        np.testing.assert_array_equal(written == 255, expected.masks[mask - 1])


def test_everything(cli: Command, model: Path, photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "objects.json"
    done = cli(
        "prompt", photo, "--everything", "--fast", "--points-per-side", 3, "--model", model, "--out", out, "--json"
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    expected = foveal.load(model).everything(photo, points_per_side=3, fast=True)
    assert report["prompts"] == expected.prompts
    assert len(report["masks"]) == len(expected) > 0
    assert report["files"] == [str(out), str(tmp_path / "objects.overlay.jpg")]
    dataset = COCO(out)
    assert dataset.imgs[1] == {"id": 1, "file_name": "photo.jpg", "height": 80, "width": 60}
    assert [a["area"] for a in dataset.anns.values()] == [record["area"] for record in expected]
    assert read_image(tmp_path / "objects.overlay.jpg").shape == (80, 60, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no prompt: give --point x,y, --box x1,y1,x2,y2, or --everything"),
        (["--point", "3"], "--point 3: write x,y in pixels, for example --point 420,310"),
        (["--point", "1,2:5"], "--point 1,2:5: write x,y:0"),
        (["--background", "1,2:0"], "--background 1,2:0: write x,y in pixels"),
        (["--box", "1,2,3"], "--box 1,2,3: write x1,y1,x2,y2 in pixels, for example --box 420,310,560,480"),
        (["--everything", "--single"], "--everything needs no prompt"),
        (["--everything", "--mask", "2"], "--everything needs no prompt"),
        (["--point", "1,2", "--mask", "4"], "--mask 4: give a number of 1 to 3"),
        (["--point", "1,2", "--mask", "0"], "--mask 0: give a number of 1 to 3"),
        (["--point", "1,2", "--single", "--mask", "2"], "--mask 2: give a number of 1 to 1"),
        (["--everything", "--out", "x.png"], "--out x.png: the result is a .json file"),
        (["--point", "1,2", "--fast"], "--fast goes with --everything"),
        (["--point", "1,2", "--points-per-side", "7"], "--points-per-side goes with --everything"),
        (["--point", "1,2", "--pred-iou-thresh", "0.5"], "--pred-iou-thresh goes with --everything"),
        (["--everything", "--stability-score-thresh", "2"], "stability_score_thresh=2.0: give a number of 0 to 1"),
        (["--point", "1,2", "--out", "x.jpg"], "--out x.jpg: the result is a .png file"),
        (["--point", "1,2", "--overlay", "x.txt"], "unknown picture format '.txt'"),
        (["--point", "1,2", "--overlay", "PHOTO"], "would overwrite the image"),
        (["--point", "1,2", "--model", "efficientvit_b0.camvid"], "is for 'segment'; use foveal segment"),
        (["--point", "-5,3", "--model", "MODEL"], "point -5,3 is outside of the image of 60x80 pixels"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    arguments: list[str],
    message: str,
    model: Path,
    photo: Path,
    tmp_path: Path,
    cli: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"PHOTO": str(photo), "MODEL": str(model)}
    done = cli("prompt", photo, *(names.get(argument, argument) for argument in arguments))
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path != photo]


def test_a_missing_image_does_not_wait_for_a_download(cli: Command, tmp_path: Path) -> None:
    done = cli("prompt", tmp_path / "none.jpg", "--point", "1,2", "--out", tmp_path / "m.png")
    assert done.returncode == 2
    assert "none.jpg" in done.stderr
    assert "download" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_tiles_are_not_for_promptable_models(cli: Command, model: Path, photo: Path, tmp_path: Path) -> None:
    done = cli("predict", photo, "--model", model, "--out", tmp_path / "out", "--tile", "512")
    assert done.returncode == 2
    assert "is promptable and encodes the whole image; leave them out" in done.stderr


def test_predict_finds_everything(cli: Command, model: Path, photo: Path, tmp_path: Path) -> None:
    """The task is the model's. A photograph that cannot be read is named, and the rest goes on."""
    (tmp_path / "bad.jpg").write_bytes(photo.read_bytes()[:300])
    images = [tmp_path / "bad.jpg", tmp_path / "none.jpg"]
    done = cli("predict", *images, "--model", model, "--out", tmp_path / "out", "--json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert [failure["image"] for failure in report["failed"]] == [str(image) for image in images]
