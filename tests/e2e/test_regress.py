"""One whole run of regression with the commands: check, train, evaluate, export, predict."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

import foveal
from foveal.images.rasters import georeference_of
from helpers.commands import Command
from helpers.maps import SIZE, maps_folder
from helpers.narrow import registered


def test_depth_from_data_to_maps(tmp_path: Path, cli: Command) -> None:
    """The maps of the exported file, stored as PNG in millimetres, have the error that the evaluation states."""
    data, run = maps_folder(tmp_path / "data"), tmp_path / "run"
    checked = cli("data", "check", data)
    assert checked.returncode == 0
    assert "for --task regress" in checked.stdout
    assert "train: depth of 1.5 to 4 m, in 93.8% of the pixels" in checked.stdout
    with registered(attention=False) as name:
        options = ["--task", "regress", "--model", name, "--epochs", 10, "--batch-size", 3, "--crop", "48x64"]
        options += ["--lr", 1e-2, "--num-workers", 0, "--set.ema_decay", 0.8, "--set.scale", "[0.9, 1.1]"]
        trained = cli("train", data, *options, "--out", run)
        assert trained.returncode == 0, trained.stderr
        assert "abs_rel" in trained.stdout
        exported = cli("export", run, "--output", tmp_path / "depth.onnx")
        assert exported.returncode == 0, exported.stderr
        shown = cli("evaluate", run, data, "--split", "val")
        assert [line.split() for line in shown.stdout.splitlines() if "AbsRel" in line]
    report = json.loads(cli("evaluate", tmp_path / "depth.onnx", data, "--split", "val", "--json").stdout)
    assert report["abs_rel"] < 0.4
    out = tmp_path / "maps"
    many = cli("predict", data / "val" / "images", "--model", tmp_path / "depth.onnx", "--out", out)
    assert many.returncode == 0, many.stderr
    errors = []
    for path in sorted((data / "val" / "targets").iterdir()):
        true, found = (np.asarray(Image.open(folder / path.name), float) for folder in (path.parent, out))
        errors.append(np.abs(found - true)[true > 0] / true[true > 0])
    assert abs(np.concatenate(errors).mean() - report["abs_rel"]) < 1e-3

    one = cli(
        "regress", data / "val/images/0.png", "--model", tmp_path / "depth.onnx", "--out", out / "a.npy", "--json"
    )
    written = json.loads(one.stdout)
    assert written["files"] == [str(out / "a.npy"), str(out / "a.picture.png")]
    assert np.load(out / "a.npy").shape == (*SIZE, 1)
    assert written["channels"][0]["mean"] == np.float64(np.load(out / "a.npy").astype(np.float64).mean())
    with Image.open(out / "a.picture.png") as picture:
        assert picture.size == SIZE[::-1]

    scale = (0.5, 0.5, 0.0)
    pixels = np.asarray(Image.open(data / "val/images/0.png"))
    tifffile.imwrite(tmp_path / "field.tif", pixels, extratags=[(33550, "d", 3, scale, True)])
    done = cli("regress", tmp_path / "field.tif", "--model", tmp_path / "depth.onnx", "--out", out / "field.tif")
    assert done.returncode == 0, done.stderr
    assert georeference_of(tmp_path / "depth.onnx") == georeference_of(data / "val/images/0.png") == {}
    damaged = [(33922, "d", 3, (0.0, 0.0, 0.0), True)]
    tifffile.imwrite(tmp_path / "damaged.tif", pixels, extratags=damaged)
    assert georeference_of(tmp_path / "damaged.tif") == {}
    with tifffile.TiffFile(out / "field.tif") as file:
        assert file.pages[0].tags[33550].value == scale
        assert np.array_equal(file.pages[0].asarray(), np.load(out / "a.npy")[..., 0])


def test_mistakes_are_one_line(tmp_path: Path, cli: Command) -> None:
    data = maps_folder(tmp_path / "data", images=1)
    for arguments, message in [
        (
            ("regress", data / "val/images/0.png", "--model", "efficientvit_b0.camvid"),
            "is for 'segment'; use foveal segment",
        ),
        (("train", data, "--task", "regress", "--set.regression_loss", "{cosine: 1}"), "cosine is for vectors"),
        (("train", data, "--set.epochs", 1), "layout 'maps', which is for the task 'regress', not for 'segment'"),
        (("evaluate", "efficientvit_b0.camvid", data), "layout 'maps', which is for the task 'regress'"),
        (("train", data, "--task", "regress", "--set.augment", "{cutmix: 1}"), "cutmix is for segment and classify"),
    ]:
        out = ("--out", tmp_path / "run") if arguments[0] == "train" else ()
        failed = cli(*arguments, *out)
        assert failed.returncode == 2
        lines = failed.stderr.splitlines()
        assert lines[-1].startswith("foveal: ")
        assert message in lines[-1]
        assert len(lines) == 1 or arguments[0] == "train", lines
    assert foveal.list_models("efficientvit_b0", task="regress") == ["efficientvit_b0"]
