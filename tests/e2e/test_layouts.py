"""Class names and colours of a data set reach the checkpoint, the exported file and the saved mask."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import foveal
from foveal.data.labels import CITYSCAPES
from foveal.data.synthetic import shapes_sample
from foveal.errors import DataError
from helpers.commands import Command
from helpers.narrow import registered


@pytest.fixture(scope="module")
def model() -> Iterator[str]:
    with registered(attention=False) as name:
        yield name


LABEL_IDS = np.array([7, 11, 23, 26], np.uint8)  # road, building, sky, car


def cityscapes(root: Path) -> Path:
    """Write scenes of shapes in the folders of Cityscapes, with its label ids."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        images, masks = root / "leftImg8bit" / split / "ulm", root / "gtFine" / split / "ulm"
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        for index in range(count):
            image, mask = shapes_sample(rng, (64, 64))
            Image.fromarray(image).save(images / f"ulm_{index}_0_leftImg8bit.png")
            Image.fromarray(LABEL_IDS[mask]).save(masks / f"ulm_{index}_0_gtFine_labelIds.png")
    return root


def test_cityscapes_from_folders_to_a_picture(cli: Command, model: str, tmp_path: Path) -> None:
    root = cityscapes(tmp_path / "cityscapes")
    settings = {"epochs": 2, "batch_size": 2, "crop": [64, 64], "workers": 0, "eval_every": 2, "ema_decay": 0.5}
    run = foveal.train(root, out=tmp_path / "run", model=model, **settings)
    scores = foveal.evaluate(run.best, root, split="val").scores
    assert set(CITYSCAPES.names) - set(scores.absent) == {"road", "building", "sky", "car"}
    done = cli("export", run.folder, "--output", tmp_path / "model.onnx", "--json")
    assert done.returncode == 0, done.stderr
    exported = json.loads(done.stdout)["path"]
    image = root / "leftImg8bit" / "val" / "ulm" / "ulm_0_0_leftImg8bit.png"
    for ref in (run.best, exported):
        predictor = foveal.load(ref)
        assert predictor.info.labels == CITYSCAPES
        saved = predictor(image).save(tmp_path / f"{Path(ref).stem}.png")
        with Image.open(saved) as picture:
            ids = np.asarray(picture)
            colours = np.asarray(picture.convert("RGB"))
        assert (colours == np.array(CITYSCAPES.palette, np.uint8)[ids]).all()


def write_outlines(root: Path) -> Path:
    """One image per split with one object, in YOLO's format."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        Image.fromarray(shapes_sample(rng, (64, 64))[0]).save(root / "images" / split / "a.png")
        (root / "labels" / split / "a.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5")
    (root / "data.yaml").write_text("names: [cat]")
    return root


def test_outlines_are_checked_trained_and_evaluated(tmp_path: Path, cli: Command) -> None:
    """What ``data check`` calls fine, training and evaluation take."""
    root = write_outlines(tmp_path / "data")
    assert cli("data", "check", root).returncode == 0
    run = foveal.train(root, out=tmp_path / "run", epochs=1, batch_size=1, crop=[64, 64], workers=0, device="cpu")
    assert foveal.evaluate(run.best, root, split="val").scores.names == ("background", "cat")
    message = "is for the task 'segment' and 'prompt', not for 'classify': train with --task segment"
    with pytest.raises(DataError, match=message):
        foveal.train(root, out=tmp_path / "other", task="classify", device="cpu")
