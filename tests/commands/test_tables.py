"""Tables, COCO files and cut-outs of the verbs that predict."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import foveal
from foveal import assets
from foveal.images.reading import read_image, read_mask
from helpers.commands import Command

STREET = assets.path("street", ".jpg")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    with Image.open(STREET) as image:
        image.crop((300, 300, 620, 560)).save(folder / "a.png")
        image.crop((700, 400, 1020, 640)).save(folder / "b.png")
    (folder / "bad.png").write_text("no image")
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_class_shares_of_a_folder(cli: Command, photos: Path, tmp_path: Path) -> None:
    """Of the masks that were written; a resumed run gives the same files, though it predicts nothing."""
    out, table, coco = tmp_path / "out", tmp_path / "shares.csv", tmp_path / "areas.json"
    command = ("segment", photos, "--out", out, "--csv", table, "--coco", coco, "--min-area", "5", "--json")
    done = cli(*command)
    assert done.returncode == 1, done.stderr
    report, rows = json.loads(done.stdout), rows_of(table)
    assert [Path(row["image"]).name for row in rows] == ["a.png", "b.png"]
    names = foveal.load("efficientvit_b0.camvid").names
    for row, printed in zip(rows, report["images"], strict=True):
        mask = read_mask(Path(row["mask"]))
        assert [int(row["height"]), int(row["width"])] == list(mask.shape) == printed["size"]
        for index, name in enumerate(names):
            share = pytest.approx((mask == index).mean(), abs=1e-5)
            assert float(row[name]) == share
            assert printed["shares"][name] == share
    assert len(json.loads(coco.read_text())["images"]) == 2
    before = table.read_bytes(), coco.read_bytes()
    again = cli(*command, "--resume")
    assert json.loads(again.stdout)["done_before"] == 2
    assert (table.read_bytes(), coco.read_bytes()) == before


def test_classes_of_a_folder(cli: Command, photos: Path, tmp_path: Path) -> None:
    model = foveal.create_model("efficientvit_b0", num_classes=3).eval()
    from foveal.weights.checkpoints import save_checkpoint

    save_checkpoint(tmp_path / "m.safetensors", model.state_dict(), model.foveal_info)
    options = ("--model", tmp_path / "m.safetensors", "--csv", tmp_path / "x.csv")
    done = cli("classify", photos, *options, "--json")
    assert done.returncode == 1
    rows = rows_of(tmp_path / "x.csv")
    assert [len(row) for row in rows] == [7, 7]
    refused = cli("predict", photos, *options[:2], "--out", "results")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "--out results: a classifier writes no files; --csv FILE writes a table" in refused.stderr
    for row, printed in zip(rows, json.loads(done.stdout)["images"], strict=True):
        assert row["image"] == printed["image"]
        assert [row[f"class_{i}"] for i in (1, 2, 3)] == [each["name"] for each in printed["classes"]]


def test_a_cut_out_is_transparent_outside_the_mask(cli: Command, tmp_path: Path) -> None:
    out, cut = tmp_path / "mask.png", tmp_path / "car.png"
    prompt = ("prompt", STREET, "--box", "714,443,1013,669", "--single", "--out", out)
    done = cli(*prompt, "--cutout", cut, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["files"] == [str(out), str(cut)]
    mask, (left, top, right, bottom) = read_image(out)[..., 0] == 255, report["masks"][0]["box"]
    with Image.open(cut) as picture:
        assert picture.mode == "RGBA"
        pixels = np.asarray(picture)
    inside = mask[top:bottom, left:right]
    np.testing.assert_array_equal(pixels[..., 3] == 255, inside)
    np.testing.assert_array_equal(pixels[inside][:, :3], read_image(STREET)[top:bottom, left:right][inside])
    assert not pixels[~inside].any()
    assert cli(*prompt, "--cutout", cut, "--whole").returncode == 0
    with Image.open(cut) as picture:
        assert picture.size == (1280, 743)


def test_every_object_is_cut_out(cli: Command, photos: Path, tmp_path: Path) -> None:
    options = ("--everything", "--points-per-side", "4", "--out", tmp_path / "e.json", "--cutout", tmp_path / "cuts")
    done = cli("prompt", photos / "b.png", *options, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    masks = report["masks"]
    assert masks
    assert report["files"][2:] == sorted(map(str, (tmp_path / "cuts").iterdir()))
    assert len(report["files"]) == 2 + len(masks)
    for number, mask in enumerate(masks, 1):
        with Image.open(tmp_path / "cuts" / f"e.{number:03}.png") as picture:
            assert picture.size == (mask["bbox"][2] + 1, mask["bbox"][3] + 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("segment", "photos", "--csv", "x.txt"), "--csv x.txt: the table is a .csv file"),
        (("segment", "photos", "--coco", "x.csv"), "--coco x.csv: the table is a .json file"),
        (("segment", "photos", "--scales", "1,b"), "--scales 1,b: write numbers with commas"),
        (("segment", "photos", "--distinct", "--no-overlay"), "--distinct goes with --overlay"),
        (("segment", "photos", "--polygons", "x.geojson"), "--coco holds the areas of several"),
        (("predict", "photos", "--model", "bicubic.x2", "--csv", "x.csv"), "upscaled images have no classes"),
        (("prompt", "photos/a.png", "--point", "9,9", "--cutout", "x.jpg"), "--cutout x.jpg: a transparent picture"),
        (("prompt", "photos/a.png", "--point", "9,9", "--whole"), "--whole goes with --cutout"),
    ],
)
def test_mistakes(
    cli: Command, photos: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(photos.parent)
    done = cli(*words)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(path.name for path in photos.parent.iterdir()) == ["photos"]
