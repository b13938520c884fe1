"""The folder of a run: one training at a time, weights after every stop, damaged logs, hostile states."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import foveal
from foveal.data.synthetic import write_shapes
from foveal.errors import CheckpointError, ConfigError, DataError, TrainingError
from foveal.training import jobs
from foveal.training.folder import RunFolder, RunState
from foveal.training.train import TrainResult
from foveal.weights.checkpoints import read_state
from helpers.runs import SETTINGS, losses, same_weights

HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "ab")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes"), train=8, val=2, size=(32, 32))


def train(data: Path, out: Path, **settings: Any) -> TrainResult:
    return foveal.train(data, out=out, **{**SETTINGS, "epochs": 1, **settings})


@pytest.mark.parametrize(
    ("method", "call", "error", "step"),
    [
        ("loss", 2, RuntimeError("a bug"), 1),
        ("loss", 2, KeyboardInterrupt(), 1),
        ("loss", 2, signal.SIGTERM, 2),
        ("loss", 1, signal.SIGINT, 1),
        ("count", 2, RuntimeError("a bug"), 2),
        ("count", 2, signal.SIGTERM, 2),
    ],
)
def test_every_stop_leaves_weights(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, call: int, error: Any, step: int
) -> None:
    """Those of the last step, complete, before the first evaluation; the folder alone is a reference to them."""
    plain, calls = getattr(jobs.SegmentJob, method), []

    def fail(self: Any, *arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == call:
            if isinstance(error, BaseException):
                raise error
            os.kill(os.getpid(), error)
        return plain(self, *arguments)

    monkeypatch.setattr(jobs.SegmentJob, method, fail)
    with pytest.raises(SystemExit if isinstance(error, signal.Signals) else type(error)):
        train(shapes, tmp_path)
    _, info = read_state(tmp_path / "last.safetensors")
    assert info is not None
    assert info.notes["log"] == {"step": step}
    assert not (tmp_path / "best.safetensors").exists()
    assert foveal.load(tmp_path)(shapes / "train" / "0000.png").mask.shape == (32, 32)
    assert not list(tmp_path.glob("*.lock"))


def test_the_second_training_in_a_folder_is_refused(shapes: Path, tmp_path: Path) -> None:
    """While another process holds the lock, new and resumed runs are refused; killed, it leaves no lock behind."""
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "training.lock"], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(ConfigError, match="another training is running in this folder"):
        train(shapes, tmp_path)
    assert not (tmp_path / "state.pt").exists()
    holder.kill()
    holder.communicate()
    first = train(shapes, tmp_path)
    assert not (tmp_path / "training.lock").exists()
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "training.lock"], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(ConfigError, match="another training"):
            foveal.train(shapes, out=tmp_path, resume=True)
        assert foveal.load(tmp_path).info.task == "segment"
        holder.kill()
    assert foveal.train(shapes, out=tmp_path, resume=True).losses == first.losses


def test_a_second_training_in_the_same_process_is_refused(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, found = jobs.SegmentJob.loss, []

    def nested(self: Any, *arguments: Any) -> Any:
        with pytest.raises(ConfigError, match="another training"):
            foveal.train(shapes, out=tmp_path / "." / "run", resume=True)
        found.append(arguments)
        return plain(self, *arguments)

    monkeypatch.setattr(jobs.SegmentJob, "loss", nested)
    train(shapes, tmp_path / "run", val_split="")
    assert len(found) == 2


def test_a_refused_run_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        train(tmp_path / "none", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_damaged_log_does_not_prevent_resuming(
    shapes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Damaged lines are dropped and counted, and the other lines stay; so do their losses."""
    whole = train(shapes, tmp_path / "whole", epochs=2, val_split="").folder
    cut = train(shapes, tmp_path / "cut", epochs=2, val_split="").folder
    log = cut / "log.jsonl"
    lines = log.read_text().splitlines()
    damage = ["\0" * 50, "[]", "7", '{"epoch": 1}', '{"step": "one"}', "[" * 100_000, '{"step": 2, "loss": 0.']
    log.write_bytes("\n".join([*damage[:3], *lines, *damage[3:]]).encode() + b"\xff\xfe")
    capfd.readouterr()
    foveal.train(shapes, out=cut, resume=True)
    assert f"{log}: damaged lines dropped: {len(damage)}" in capfd.readouterr().err
    assert losses(cut) == losses(whole)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 2, 3, 4, 4]
    assert same_weights(cut, whole)


class _Bytes:
    def __reduce__(self) -> Any:
        return bytearray, (1 << 36,)


def _states(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda states: {**states, "more": _Bytes()}, "asks to allocate a byte array"),
        (
            lambda states: {**states, "model": {"weight": torch.zeros(1).expand(1 << 40), "bias": torch.zeros(2)}},
            "1099",
        ),
        (lambda states: {**states, "model": {}}, "cannot be resumed from"),
        (lambda states: states | {"progress": {**states["progress"], "step": "one"}}, "expected int"),
        (lambda states: states | {"progress": {**states["progress"], "step": -1}}, "impossible progress"),
        (lambda states: states | {"progress": {**states["progress"], "bad": {9: "x"}}}, "impossible progress"),
        (lambda states: states | {"progress": {**states["progress"], "steps": 1}}, "unknown key 'steps'"),
        (lambda states: [], "cannot be resumed from"),
    ],
)
def test_hostile_states_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    folder, parts = RunFolder(tmp_path), {"model": nn.Linear(2, 2)}
    folder.save_state(parts, RunState(images=8, step=3))
    assert folder.load_state(parts).step == 3
    torch.save(change(_states(folder.state)), folder.state, pickle_module=pickle)
    with pytest.raises(CheckpointError, match=message):
        folder.load_state(parts)


def test_moments_of_another_shape_are_refused(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    folder = RunFolder(tmp_path)
    folder.save_state({"optimizer": optimizer}, RunState(images=8))
    states = _states(folder.state)
    states["optimizer"]["state"][0]["exp_avg"] = torch.zeros(3)
    torch.save(states, folder.state)
    with pytest.raises(CheckpointError, match=r"\(3,\) instead of \(2, 2\)"):
        folder.load_state({"optimizer": optimizer})


@pytest.mark.parametrize("settings", [{"batch_size": 1}, {"batch_size": 3, "accumulate": 2}])
def test_one_value_per_channel_is_explained(shapes: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    """A batch of one image at 32 x 32, and a last piece of one."""
    with pytest.raises(TrainingError, match=r"need more than one value per channel.*raise batch_size or crop"):
        train(shapes, tmp_path, **settings)
    assert train(shapes, tmp_path / "frozen", **settings, freeze_bn=True, val_split="").losses
