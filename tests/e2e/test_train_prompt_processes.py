"""Promptable models trained by two processes, each with half of the batch."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import foveal
from foveal.info import info_of
from foveal.weights.checkpoints import save_checkpoint
from helpers.runs import ONE_THREAD, furthest_weights, losses, torchrun

SETTINGS = {
    "model": "mobilenetv3_small_100",
    "task": "prompt",
    "epochs": 3,
    "batch_size": 2,
    "workers": 0,
    "val_split": "",
    "log_every": 1,
    "lr": 1e-3,
}


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of noise, each with the masks of two objects."""
    root, rng = tmp_path_factory.mktemp("objects"), np.random.default_rng(0)
    for kind in ("images", "masks"):
        (root / kind / "train").mkdir(parents=True)
    for index in range(4):
        ids = np.zeros((48, 64), np.uint8)
        ids[8:40, 4:24], ids[10:30, 36:60] = 1, 2
        noise = rng.integers(0, 120, (48, 64, 3), np.uint8) + 60 * ids[..., None]
        Image.fromarray(noise).save(root / "images" / "train" / f"{index}.png")
        Image.fromarray(ids).save(root / "masks" / "train" / f"{index}.png")
    return root


@pytest.mark.long
def test_they_distil_what_one_does(objects: Path, tmp_path: Path) -> None:
    """With norms over the whole batch, losses agree to 1e-9 and parameters to 1e-6; both processes run the teacher."""
    model = foveal.create_model(SETTINGS["model"], "prompt")
    teacher = tmp_path / "teacher.safetensors"
    save_checkpoint(teacher, model.state_dict(), info_of(model).replace(tag="test"))
    settings = {**SETTINGS, "teacher": str(teacher), "precision": "fp64", "flip": 0.0}
    one = foveal.train(objects / "images", out=tmp_path / "one", **settings).folder
    command = torchrun(objects / "images", tmp_path / "two", settings)
    subprocess.run(command, check=True, capture_output=True, env=ONE_THREAD)
    names = [{file.name for file in (folder / "embeddings").iterdir()} for folder in (one, tmp_path / "two")]
    assert names[0] == names[1]
    assert len(names[0]) == 4 + 1
    first, second = losses(one), losses(tmp_path / "two")
    assert len(first) == 6
    assert first.keys() == second.keys()
    assert list(first.values()) == pytest.approx(list(second.values()), rel=1e-9)
    assert furthest_weights(one, tmp_path / "two") <= 1e-6


@pytest.mark.long
@pytest.mark.parametrize("fsdp", [False, True])
def test_they_learn_masks(objects: Path, tmp_path: Path, fsdp: bool) -> None:
    """Each process draws its own prompts, so the losses differ from those of one process; they still fall."""
    settings = {**SETTINGS, "prompts": 2, "clicks": 1, "fsdp": fsdp, "epochs": 5}
    command = torchrun(objects, tmp_path / "run", settings)
    subprocess.run(command, check=True, capture_output=True, env=ONE_THREAD)
    found = list(losses(tmp_path / "run").values())
    assert len(found) == 10
    assert np.isfinite(found).all()
    assert np.mean(found[-3:]) < np.mean(found[:3])
    assert foveal.load(tmp_path / "run").info.task == "prompt"
