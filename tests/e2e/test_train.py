"""Training learns, writes complete files, resumes with exactly the same numbers, and explains what it refuses."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

import foveal
from foveal.data.segmentation import SegmentationData
from foveal.data.synthetic import NAMES, write_shapes
from foveal.evaluation.metrics import SegmentScores, confusion_matrix
from foveal.training.train import TrainResult
from foveal.weights.checkpoints import read_state
from helpers.commands import Command
from helpers.processes import start_command, start_torchrun
from helpers.runs import SMALL, torchrun, wait_for

TINY = {"batch_size": 8, "crop": [64, 64], "workers": 0, "eval_every": 2, "class_weights": "none"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("tiny"), train=24, val=4, size=(64, 64))


def check_learnt(run: TrainResult, shapes: Path) -> None:
    """The validation mIoU is far above that of predicting "ground" everywhere."""
    data = SegmentationData.open(shapes, ["val"])
    matrix = np.zeros((4, 4), np.int64)
    for _, mask in (data[i] for i in range(len(data))):
        matrix += confusion_matrix(mask, np.zeros_like(mask), 4)
    assert run.losses[-1] < 0.6 * run.losses[0]
    assert run.value > SegmentScores(matrix, NAMES).miou + 0.15


def test_learns_more_than_the_background(run: TrainResult, shapes: Path) -> None:
    check_learnt(run, shapes)


@pytest.mark.long
def test_learns_from_scratch(tmp_path: Path) -> None:
    shapes = write_shapes(tmp_path / "shapes", train=160, val=32)
    settings = {"epochs": 12, "batch_size": 16, "crop": [80, 80], "scale": [0.8, 1.3], "jitter": 0.1, "lr": 4e-3}
    settings |= {"class_weights": "none", "ema_decay": 0.97, "eval_every": 6, "workers": 1}
    check_learnt(foveal.train(shapes, out=tmp_path / "run", **settings), shapes)


def test_run_folder_describes_itself(run: TrainResult) -> None:
    """Settings, log and checkpoints are there, and the checkpoint knows its classes."""
    settings = yaml.safe_load((run.folder / "config.yaml").read_text())
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert settings["epochs"] == len(lines) == 6
    assert [line["epoch"] for line in lines if "miou" in line] == [3, 6]
    state, info = read_state(run.best)
    assert info is not None
    assert (info.model, info.task, info.labels.names) == ("efficientvit_b0", "segment", NAMES)
    assert all(np.isfinite(tensor.float().numpy()).all() for tensor in state.values())
    assert not list(run.folder.glob(".*")), "temporary files were left behind"


def test_killed_run_resumes_to_the_bit(tiny: Path, tmp_path: Path, cli: Command) -> None:
    """After kill -9 within an epoch and --resume, losses and weights are those of an uninterrupted run."""
    assert cli(*_train_arguments(tiny, tmp_path / "whole")).returncode == 0
    process = start_command(*_train_arguments(tiny, tmp_path / "cut"), errors=tmp_path / "errors")
    log = tmp_path / "cut" / "log.jsonl"
    wait_for(lambda: log.exists() and len(log.read_text().splitlines()) >= 2)
    process.kill()
    process.join()
    assert len(log.read_text().splitlines()) < 6
    assert cli(*_train_arguments(tiny, tmp_path / "cut"), "--resume").returncode == 0

    def losses(name: str) -> dict[int, float]:
        lines = map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
        return {line["epoch"]: line["loss"] for line in lines}

    assert losses("cut") == losses("whole")
    first, second = (read_state(tmp_path / name / "last.safetensors")[0] for name in ("cut", "whole"))
    assert all(first[key].equal(second[key]) for key in second)


def _train_arguments(data: Path, out: Path) -> list[str]:
    recipe = data / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**TINY, **SMALL, "epochs": 6}))
    return ["train", str(data), "--config", str(recipe), "--out", str(out)]


def test_torchrun_trains_one_model_on_two_processes(tiny: Path, tmp_path: Path) -> None:
    """Two processes share each batch and write one log and one set of files; both leave out a bad image."""
    data = tmp_path / "data"
    shutil.copytree(tiny, data)
    bad = sorted((data / "train").iterdir())[0]
    bad.write_bytes(b"no picture")
    command = torchrun(data, tmp_path / "run", {**TINY, **SMALL, "epochs": 6}, "--set.max_bad", "0.05")
    launcher = start_torchrun(command, tmp_path / "errors")
    launcher.join(600)
    errors = (tmp_path / "errors").read_text()
    assert launcher.exitcode == 0, errors
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["bad"] for line in lines] == [1] * 6
    assert (tmp_path / "run" / "bad.txt").read_text() == "train/0000.png\n"
    assert errors.count("left out of training: ") == 1
    assert math.isfinite(lines[-1]["loss"])


def test_loss_is_the_sum_of_its_terms(tiny: Path, tmp_path: Path) -> None:
    """Checked in the first step, where all runs have the same weights and images; config.yaml records the losses."""

    def first(name: str, loss: dict[str, float]) -> float:
        settings = {**TINY, **SMALL, "batch_size": 24, "epochs": 1, "val_split": "", "loss": loss}
        found = foveal.train(tiny, out=tmp_path / name, **settings)
        assert yaml.safe_load((found.folder / "config.yaml").read_text())["loss"] == loss
        return found.losses[0]

    expected = first("a", {"cross_entropy": 1.0}) + 0.5 * first("b", {"lovasz": 1.0})
    assert first("c", {"cross_entropy": 1.0, "lovasz": 0.5}) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch": 3}, r"unknown key 'epoch'; did you mean 'epochs'\?"),
        ({"precision": "bf61"}, r"did you mean 'bf16'\?"),
        ({"epochs": "many"}, "expected int"),
        ({"lr": -1.0}, "lr=-1.0 is out of range: give a number above 0"),
        ({"batch_size": 1000}, "batch_size=1000 is above the 24 training images"),
        ({"accumulate": 9}, r"accumulate=9 is out of range: give 1 to batch_size \(8\)"),
        ({"splits": ["trian"]}, r"no split 'trian' .* did you mean 'train'\?"),
        ({"model": "efficientvit_b7"}, r"unknown model 'efficientvit_b7'; did you mean"),
        ({"options": {"scale": [3]}}, r"no option 'scale'; did you mean 'scales'\?"),
    ],
)
def test_mistakes_are_explained(tiny: Path, tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(foveal.FovealError, match=message):
        foveal.train(tiny, out=tmp_path / "run", **{**TINY, "epochs": 1, **settings})


def test_runs_are_neither_overwritten_nor_mixed(run: TrainResult, shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(foveal.ConfigError, match="holds a run already"):
        foveal.train(shapes, out=run.folder)
    with pytest.raises(foveal.ConfigError, match="nothing to resume"):
        foveal.train(shapes, out=tmp_path / "none", resume=True)
    with pytest.raises(foveal.ConfigError, match=r"was started with another .*lr"):
        foveal.train(shapes, config=run.folder / "config.yaml", out=run.folder, resume=True, lr=1e-5)
