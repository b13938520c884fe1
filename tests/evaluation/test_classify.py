"""Top-1 and top-5 accuracy of a classifier on data that names the model's classes in different ways."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import foveal
from foveal.cli import main
from foveal.data.classification import ClassificationData
from foveal.data.labels import IMAGENET, IMAGENET_IDS
from foveal.errors import ConfigError, DataError
from foveal.info import Labels, ModelInfo, Preprocess, attach, info_of
from foveal.prediction.predictor import Predictor
from foveal.weights.checkpoints import save_checkpoint

COLOURS = ("black", "darkest", "dark", "middle", "light", "lightest", "white")


def by_brightness(names: tuple[str, ...], count: int) -> Predictor:
    """A classifier whose best guess is the grey level of the image, followed by the nearest levels."""

    def run(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        levels = np.arange(count, dtype=np.float32)
        return -np.abs(batch.mean((1, 2, 3))[:, None] * 100 - levels[None] - 0.1)

    preprocess = Preprocess((0, 0, 0), (1, 1, 1), size=(32, 32), crop_ratio=1.0)
    info = ModelInfo(task="classify", num_classes=count, preprocess=preprocess, labels=Labels(names))
    return Predictor(run, info, "numpy")


def grey(path: Path, level: int) -> Path:
    """Write a picture that ``by_brightness`` classifies as ``level``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 36), (round(level * 2.55),) * 3).save(path)
    return path


def test_counts_by_hand(tmp_path: Path) -> None:
    """Seven images are right, one is off by a level, one by many, one is damaged."""
    root = tmp_path / "data"
    for index, name in enumerate(COLOURS):
        grey(root / "val" / name / "right.png", index)
    grey(root / "val" / "dark" / "beside.png", 3)
    grey(root / "val" / "white" / "far.png", 0)
    (root / "val" / "light" / "bad.png").write_bytes(b"no picture")
    found = foveal.evaluate(by_brightness(COLOURS, 7), root, out=tmp_path / "out")
    assert (found.images, found.split) == (9, "val")
    assert found.top1 == 7 / 9
    assert found.top5 == 8 / 9
    assert list(found.skipped) == ["val/light/bad.png"]
    beside = next(image for image in found.per_image if image.image == "val/dark/beside.png")
    assert (beside.target, beside.guesses[:3]) == (2, (3, 4, 2))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["top1"], report["images"], len(report["per_image"])) == (round(7 / 9, 6), 9, 9)
    rows = list(csv.DictReader((tmp_path / "out" / "per_image.csv").read_text().splitlines()))
    wrong = [row["image"] for row in rows if row["class"] != row["guess 1"]]
    assert wrong == ["val/dark/beside.png", "val/white/far.png"]


def test_the_split_is_the_test_data_where_there_is_some(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        grey(tmp_path / split / "black" / "a.png", 0)
    model = by_brightness(COLOURS, 7)
    assert foveal.evaluate(model, tmp_path).split == "test"
    assert foveal.evaluate(model, tmp_path, split="val").split == "val"
    (tmp_path / "test").rename(tmp_path / ".test")
    assert foveal.evaluate(model, tmp_path).split == "valid"
    with pytest.raises(DataError, match="no split 'tets'"):
        foveal.evaluate(model, tmp_path, split="tets")


def test_imagenet_by_wordnet_ids(tmp_path: Path) -> None:
    """Folders named by ids, or one folder of files with the ids in their names; a part of the classes is enough."""
    assert (len(IMAGENET_IDS), len(set(IMAGENET_IDS)), len(set(IMAGENET.names))) == (1000, 1000, 1000)
    assert IMAGENET_IDS[0] == "n01440764"
    assert [IMAGENET.names[i] for i in (0, 207, 281, 999)] == ["tench", "golden retriever", "tabby", "toilet tissue"]
    for index in (0, 7, 90):
        grey(tmp_path / "folders" / IMAGENET_IDS[index] / "a.png", index)
        grey(tmp_path / "files" / f"{index:04}_{IMAGENET_IDS[index]}_name.png", index)
    grey(tmp_path / "files" / f"{IMAGENET_IDS[7]}_12.png", 8)
    data = ClassificationData.open(tmp_path / "files", ["all"])
    assert data.labels.names == tuple(IMAGENET_IDS[i] for i in (0, 7, 90))
    for names in (IMAGENET.names, ()):
        assert foveal.evaluate(by_brightness(names, 1000), tmp_path / "folders").top1 == 1
        files = foveal.evaluate(by_brightness(names, 1000), tmp_path / "files")
        assert (files.images, files.top1, files.split) == (4, 0.75, "all")
    grey(tmp_path / "split" / "val" / IMAGENET_IDS[7] / "a.png", 7)
    grey(tmp_path / "split" / f"{IMAGENET_IDS[9]}.png", 7)  # next to folders of images it is not a sample
    assert foveal.evaluate(by_brightness((), 1000), tmp_path / "split").images == 1
    grey(tmp_path / "files" / "other.png", 1)
    with pytest.raises(DataError, match="no folders of images"):
        foveal.evaluate(by_brightness((), 1000), tmp_path / "files")


def test_wordnet_ids_split_and_leave_out_as_folders_do(tmp_path: Path) -> None:
    for index in range(20):
        grey(tmp_path / f"{IMAGENET_IDS[index % 2]}_{index}.png", index)
    (tmp_path / "bad.txt").write_text(f"{IMAGENET_IDS[0]}_0.png\n")
    (tmp_path / "dataset.yaml").write_text("val_share: 0.2\nexclude: bad.txt\n")
    parts = {split: len(ClassificationData.open(tmp_path, [split])) for split in ("train", "val", "all")}
    assert parts == {"train": 15, "val": 4, "all": 19}


def test_classes_that_do_not_fit(tmp_path: Path) -> None:
    grey(tmp_path / "white" / "a.png", 6)
    grey(tmp_path / "whitest" / "a.png", 6)
    with pytest.raises(ConfigError, match=r"no class 'whitest' of the data; did you mean 'white'\?"):
        foveal.evaluate(by_brightness(COLOURS, 7), tmp_path)
    with pytest.raises(ConfigError, match="the model has 7 classes without names, the data 2"):
        foveal.evaluate(by_brightness((), 7), tmp_path)
    assert foveal.evaluate(by_brightness((), 2), tmp_path).images == 2
    with pytest.raises(ConfigError, match="boundary=True is for models of the task 'segment', this one is"):
        foveal.evaluate(by_brightness((), 2), tmp_path, boundary=True)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = foveal.create_model("mobilenetv3_small_100", num_classes=2).eval()
    preprocess = Preprocess(size=(32, 32), crop_ratio=1.0)
    attach(model, info_of(model).replace(labels=Labels(("black", "white")), preprocess=preprocess))
    save_checkpoint(tmp_path / "net.safetensors", model.state_dict(), info_of(model))
    grey(tmp_path / "data" / "black" / "a.png", 0)
    (tmp_path / "data" / "white").mkdir()
    (tmp_path / "data" / "white" / "b.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit) as done:
        main(["evaluate", str(tmp_path / "net.safetensors"), str(tmp_path / "data"), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert (done.value.code, report["images"], len(report["skipped"])) == (1, 1, 1)
    with pytest.raises(SystemExit):
        main(["evaluate", str(tmp_path / "net.safetensors"), str(tmp_path / "data")])
    assert "top-5 100.00%  (1 images of all)" in capsys.readouterr().out
