"""Class names and colours of a data set reach the checkpoint, the exported file and the saved mask."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

import foveal
from foveal.data.labels import CITYSCAPES
from foveal.data.synthetic import shapes_sample
from helpers.commands import Command

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


def test_cityscapes_from_folders_to_a_picture(cli: Command, tmp_path: Path) -> None:
    root = cityscapes(tmp_path / "cityscapes")
    run = foveal.train(
        root, out=tmp_path / "run", epochs=2, batch_size=2, crop=[64, 64], workers=0, eval_every=2, ema_decay=0.5
    )
    scores = foveal.evaluate(run.best, root, split="val").scores
    assert set(CITYSCAPES.names) - set(scores.absent) <= {"road", "building", "sky", "car"}
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
