"""Faults in the middle of a long run: kills, signals, full disks, NaN, lack of memory, dead processes.

Numbers in the names are those of the fault list in docs/training.md.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

import foveal
from foveal.data.synthetic import write_shapes
from foveal.training import jobs
from foveal.training.folder import RunFolder
from foveal.training.segment import SegmentJob
from foveal.weights.checkpoints import read_state
from helpers.processes import fork_server, start_torchrun
from helpers.runs import (
    ONE_THREAD,
    SETTINGS,
    SMALL,
    children,
    furthest_weights,
    losses,
    same_weights,
    torchrun,
    wait_for,
)

SAVE_EVERY_STEP = 1e-6


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("tiny"), train=24, val=4, size=(32, 32))


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    torch.set_num_threads(1)
    return foveal.train(tiny, out=tmp_path_factory.mktemp("whole") / "run", **SETTINGS, **SMALL).folder


def _train(data: Path, out: Path, settings: dict[str, Any], lines: Path | None = None) -> None:
    """In a separate process: train, or resume; standard error goes to the file ``lines``."""
    torch.set_num_threads(1)
    if lines is not None:
        handle = os.open(lines, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 2)
    resume = (out / "state.pt").exists()
    try:
        foveal.train(data, out=out, resume=resume, **({} if resume else settings))
    except foveal.FovealError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(error.exit_code)


def _stamp(folder: Path) -> int:
    return (folder / "state.pt").stat().st_mtime_ns


@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=pytest.mark.long)])
def test_37_killed_at_random_instants_resumes_to_the_bit(tiny: Path, whole: Path, tmp_path: Path, kills: int) -> None:
    """After kill -9 at random times, with a save after every step, the state loads; the finished run is the same."""
    out, rng = tmp_path / "cut", random.Random(0)
    settings = {**SETTINGS, **SMALL, "save_minutes": SAVE_EVERY_STEP}
    killed = 0
    while killed < kills:
        process = fork_server().Process(target=_train, args=(tiny, out, settings))
        process.start()
        wait_for((out / "state.pt").exists)
        before = _stamp(out)
        wait_for(lambda: not process.is_alive() or _stamp(out) != before)  # noqa: B023 (called at once)
        process.join(rng.uniform(0, 0.4))
        if not process.is_alive():  # it had come to the end: once more from the start
            assert losses(out) == losses(whole)
            assert same_weights(out, whole)
            out = tmp_path / f"cut{killed}"
            continue
        process.kill()
        process.join()
        killed += 1
        assert torch.load(out / "state.pt", weights_only=True)["progress"]["step"] >= 0
    foveal.train(tiny, out=out, resume=True)
    assert not list(out.glob(".*")), "what killed processes had begun to write is gone"
    assert losses(out) == losses(whole)
    assert same_weights(out, whole)


@pytest.mark.parametrize("workers", [2, pytest.param(0, marks=pytest.mark.long)])  # 0: as in training/test_prompt.py
def test_39_sigterm_saves_within_an_epoch_and_ends(tiny: Path, whole: Path, tmp_path: Path, workers: int) -> None:
    """All processes of the group get the signal, as from a service manager; resumed, the run is the undisturbed one."""
    settings = {**SETTINGS, **SMALL, "workers": workers}
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "cut"
    recipe.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "foveal", "train", str(tiny), "--config", str(recipe), "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=ONE_THREAD)
    wait_for(lambda: (out / "log.jsonl").exists() and len(losses(out)) >= 2)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=30)  # the promise
    assert process.returncode == 128 + signal.SIGTERM
    assert "resume with --resume" in errors
    assert "Traceback" not in errors
    stopped_at = max(losses(out))
    assert torch.load(out / "state.pt", weights_only=True)["progress"]["step"] == stopped_at < 24
    foveal.train(tiny, out=out, resume=True)
    assert losses(out) == losses(whole)
    assert same_weights(out, whole)


def _limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _train_on_a_full_disk(data: Path, out: Path, lines: Path) -> None:
    _limit_files(200_000)  # no file may grow beyond: the kernel refuses the write as on a full disk
    _train(data, out, {}, lines)


def test_38_full_disk_leaves_the_old_state(tiny: Path, tmp_path: Path) -> None:
    out, lines = tmp_path / "run", tmp_path / "errors"
    short = {**SETTINGS, "epochs": 2}
    foveal.train(tiny, out=out, **short)
    (out / "config.yaml").write_text(yaml.safe_dump({**yaml.safe_load((out / "config.yaml").read_text()), "epochs": 4}))
    before = (out / "state.pt").read_bytes()
    process = fork_server().Process(target=_train_on_a_full_disk, args=(tiny, out, lines))
    process.start()
    process.join(600)
    message = lines.read_text().strip().splitlines()[-1]
    assert process.exitcode == 1
    assert message.startswith("cannot write")
    assert (out / "state.pt").read_bytes() == before
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


class _PoisonedJob(SegmentJob):
    """A job in which one image is NaN."""

    poisoned = 5

    def sample(self, index: int, rng: np.random.Generator, done: float) -> tuple[Tensor, Tensor]:
        image, target = super().sample(index, rng, done)
        return (image * float("nan") if index == self.poisoned else image), target


def test_41_nan_loss_goes_back_and_says_so(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A batch with a NaN loss is left out and its images are named; the weights stay finite."""
    monkeypatch.setitem(jobs.JOBS, "segment", _PoisonedJob)  # type: ignore[index]
    result = foveal.train(tiny, out=tmp_path / "run", **{**SETTINGS, "epochs": 2})
    said = capfd.readouterr().err
    assert said.count("back to step") == 3  # once in each pass; the batches left out make it a third one
    assert "0005.png" in said
    assert sorted(losses(result.folder)) == list(range(1, 13))
    assert all(np.isfinite(list(losses(result.folder).values())))
    assert all(t.isfinite().all() for t in read_state(result.best)[0].values())


class _SteepJob(_PoisonedJob):
    """A job in which the loss of one image is finite, and its gradient is NaN."""

    def sample(self, index: int, rng: np.random.Generator, done: float) -> tuple[Tensor, Tensor]:
        image, target = SegmentJob.sample(self, index, rng, done)
        return (torch.full_like(image, 0.5) if index == self.poisoned else image), target

    def loss(self, trainee: torch.nn.Module, image: Tensor, target: Tensor) -> Tensor:
        value = super().loss(trainee, image, target)
        steep = bool((image.flatten(1).std(1) == 0).any())
        return value + (value - value.detach()).abs().sqrt() if steep else value


def test_41_a_nan_gradient_is_left_out_too(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(jobs.JOBS, "segment", _SteepJob)  # type: ignore[index]
    result = foveal.train(tiny, out=tmp_path / "run", **{**SETTINGS, **SMALL, "epochs": 2})
    assert sorted(losses(result.folder)) == list(range(1, 13))
    for name in ("best", "last"):
        assert all(t.isfinite().all() for t in read_state(result.folder / f"{name}.safetensors")[0].values())


def test_validation_without_labels_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = write_shapes(tmp_path / "data", train=4, val=2, size=(32, 32))
    for mask in (data / "valannot").iterdir():
        Image.fromarray(np.full((32, 32), 255, np.uint8)).save(mask)
    result = foveal.train(data, out=tmp_path / "run", **{**SETTINGS, **SMALL, "epochs": 2})
    assert np.isnan(result.value)
    assert "val cannot be scored (miou): its images have nothing to compare with" in capfd.readouterr().err
    assert result.best.exists()


def test_41_nan_in_every_batch_ends_the_run(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(foveal.TrainingError, match=r"became (nan|inf) at step \d+ \(images .*4th time"):
        foveal.train(tiny, out=tmp_path / "run", **{**SETTINGS, "lr": 1e18, "grad_clip": 0.0, "warmup": 0.0})


def _train_with_little_memory(data: Path, out: Path, settings: dict[str, Any], lines: Path) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    room = used + settings.pop("room") * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    _train(data, out, settings, lines)


def test_42_out_of_memory_goes_on_in_pieces(tiny: Path, tmp_path: Path) -> None:
    out, lines = tmp_path / "run", tmp_path / "errors"
    settings = {**SETTINGS, "crop": [512, 512], "batch_size": 12, "epochs": 1, "room": 900, "val_split": ""}
    process = fork_server().Process(target=_train_with_little_memory, args=(tiny, out, settings, lines))
    process.start()
    process.join(600)
    said = lines.read_text()
    assert process.exitcode == 0, said
    assert "out of memory: going on with batches in" in said
    assert len(losses(out)) == 2


def test_42_pieces_give_the_same_gradient(tiny: Path, tmp_path: Path) -> None:
    """Without batch statistics, a batch in pieces trains like a whole one, even if the pieces have unequal weights."""
    settings = {**SETTINGS, **SMALL, "freeze_bn": True, "class_weights": "median", "epochs": 1, "precision": "fp64"}
    settings |= {"val_split": ""}
    at_once = foveal.train(tiny, out=tmp_path / "whole", **settings).folder
    pieces = foveal.train(tiny, out=tmp_path / "pieces", **settings, accumulate=4).folder
    first, second = losses(at_once), losses(pieces)
    assert first.keys() == second.keys()
    assert list(first.values()) == pytest.approx(list(second.values()), rel=1e-6)


def test_40_dead_loading_process_is_named(tiny: Path, tmp_path: Path) -> None:
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump({**SETTINGS, **SMALL, "workers": 1, "epochs": 1000, "eval_every": 1000}))
    command = [sys.executable, "-m", "foveal", "train", str(tiny), "--config", str(recipe), "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ONE_THREAD)
    wait_for(lambda: (out / "log.jsonl").exists() and len(losses(out)) >= 2)
    for worker in children(process.pid):
        os.kill(worker, signal.SIGKILL)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 1
    assert "a data loading process died" in errors, errors
    assert ".png" in errors.splitlines()[-1]
    assert "Traceback" not in errors


def test_43_the_others_end_when_a_process_dies(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = torchrun(tiny, out, {**SETTINGS, **SMALL, "epochs": 1000})
    launcher = start_torchrun(command, tmp_path / "errors")
    assert launcher.pid is not None
    wait_for(lambda: (out / "log.jsonl").exists() and len(losses(out)) >= 2)
    ranks = children(launcher.pid)
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    launcher.join(60)
    assert launcher.exitcode not in (0, None)
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    assert RunFolder(out).state.exists()


def _train_rank(rank: int, port: int, data: Path, out: Path, settings: dict[str, Any]) -> None:
    """In a separate process: train as one of two, with the environment that torchrun gives."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    foveal.train(data, out=out, **settings)


def test_two_processes_train_what_one_does(tiny: Path, tmp_path: Path) -> None:
    """Same global batch, norms over all of it, each validation image counted once: parameters agree to 1e-6.

    In float64: AdamW turns float32's rounding of a gradient near zero into a step of full size.
    """
    settings = {**SETTINGS, "batch_size": 8, "epochs": 7, "eval_every": 7, "class_weights": "median", "workers": 0}
    settings |= {"precision": "fp64", "loss": {"cross_entropy": 1.0}} | SMALL
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    arguments = port, tiny, tmp_path / "two", settings
    ranks = [fork_server().Process(target=_train_rank, args=(rank, *arguments)) for rank in (0, 1)]
    for rank in ranks:
        rank.start()
    try:
        one = foveal.train(tiny, out=tmp_path / "one", **settings).folder
        for rank in ranks:
            rank.join(600)
            assert rank.exitcode == 0
    finally:
        for rank in ranks:  # one of them waits for the other one if that has failed
            rank.kill()
    first, second = losses(one), losses(tmp_path / "two")
    assert first.keys() == second.keys()
    assert len(first) == 21
    assert list(first.values()) == pytest.approx(list(second.values()), rel=1e-9)
    assert furthest_weights(one, tmp_path / "two") <= 1e-6
    scores = [json.loads((f / "log.jsonl").read_text().splitlines()[-1]) for f in (one, tmp_path / "two")]
    assert scores[0]["pixel_accuracy"] == scores[1]["pixel_accuracy"]
