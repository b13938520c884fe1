"""What goes wrong in the middle of a long run: kills, signals, full disks, NaN, no memory, dead processes.

Numbers in the names are those of the fault list in docs/training.md.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

import foveal
from foveal.data.synthetic import write_shapes
from foveal.run import jobs
from foveal.run.folder import RunFolder
from foveal.run.jobs import SegmentJob
from foveal.weights import read_state

SETTINGS: dict[str, Any] = {
    "epochs": 4,
    "batch_size": 4,
    "crop": [32, 32],
    "workers": 0,
    "eval_every": 2,
    "class_weights": "none",
    "ema_decay": 0.9,
    "log_every": 1,
    "tint": 0.1,
}
SAVE_EVERY_STEP = 1e-6
_ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("tiny"), train=24, val=4, size=(32, 32))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As in the processes that are started here: other numbers of threads round otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    torch.set_num_threads(1)
    return foveal.train(tiny, out=tmp_path_factory.mktemp("whole") / "run", **SETTINGS).folder


@pytest.fixture(scope="module")
def processes() -> multiprocessing.context.ForkServerContext:
    """Processes that start with everything imported, so that a kill soon meets training and not an import."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["foveal.run.train", "foveal.models"])
    return context


def _train(data: Path, out: Path, settings: dict[str, Any], lines: Path | None = None) -> None:
    """In a process of its own: train, or go on; what it says goes to ``lines``."""
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


def _losses(folder: Path) -> dict[int, float]:
    """Loss by step."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "epoch" not in line}


def _stamp(folder: Path) -> int:
    return (folder / "state.pt").stat().st_mtime_ns


def _same_weights(first: Path, second: Path) -> bool:
    a, b = (read_state(folder / "last.safetensors")[0] for folder in (first, second))
    return a.keys() == b.keys() and all(a[key].equal(b[key]) for key in a)


def _wait(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=pytest.mark.long)])
def test_37_killed_at_random_instants_resumes_to_the_bit(
    tiny: Path, whole: Path, tmp_path: Path, processes: Any, kills: int
) -> None:
    """kill -9 at random instants of saving after every step: each time a state that loads; at the end the same run."""
    out, rng = tmp_path / "cut", random.Random(0)
    settings = {**SETTINGS, "save_minutes": SAVE_EVERY_STEP}
    killed = 0
    while killed < kills:
        process = processes.Process(target=_train, args=(tiny, out, settings))
        process.start()
        _wait((out / "state.pt").exists)
        before = _stamp(out)
        _wait(lambda: not process.is_alive() or _stamp(out) != before)  # noqa: B023 (called at once)
        process.join(rng.uniform(0, 0.4))
        if not process.is_alive():  # it had come to the end: once more from the start
            assert _losses(out) == _losses(whole)
            assert _same_weights(out, whole)
            out = tmp_path / f"cut{killed}"
            continue
        process.kill()
        process.join()
        killed += 1
        assert torch.load(out / "state.pt", weights_only=True)["progress"]["step"] >= 0
    foveal.train(tiny, out=out, resume=True)
    assert _losses(out) == _losses(whole)
    assert _same_weights(out, whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_39_sigterm_saves_within_an_epoch_and_ends(tiny: Path, tmp_path: Path, workers: int) -> None:
    """Every process of the group gets the signal, as service managers do it; the resumed run is the undisturbed one."""
    settings = {**SETTINGS, "workers": workers}
    undisturbed = foveal.train(tiny, out=tmp_path / "whole", **settings).folder
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "cut"
    recipe.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "foveal", "train", str(tiny), "--config", str(recipe), "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=_ONE_THREAD)
    _wait(lambda: (out / "log.jsonl").exists() and len(_losses(out)) >= 2)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert "resume with --resume" in errors
    assert "Traceback" not in errors
    stopped_at = max(_losses(out))
    assert torch.load(out / "state.pt", weights_only=True)["progress"]["step"] == stopped_at < 24
    foveal.train(tiny, out=out, resume=True)
    assert _losses(out) == _losses(undisturbed)
    assert _same_weights(out, undisturbed)


def _limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _train_on_a_full_disk(data: Path, out: Path, lines: Path) -> None:
    _limit_files(200_000)  # no file may grow beyond: the kernel refuses the write as on a full disk
    _train(data, out, {}, lines)


def test_38_full_disk_leaves_the_old_state(tiny: Path, tmp_path: Path, processes: Any) -> None:
    out, lines = tmp_path / "run", tmp_path / "errors"
    short = {**SETTINGS, "epochs": 2}
    foveal.train(tiny, out=out, **short)
    (out / "config.yaml").write_text(yaml.safe_dump({**yaml.safe_load((out / "config.yaml").read_text()), "epochs": 4}))
    before = (out / "state.pt").read_bytes()
    process = processes.Process(target=_train_on_a_full_disk, args=(tiny, out, lines))
    process.start()
    process.join(120)
    message = lines.read_text().strip().splitlines()[-1]
    assert process.exitcode == 2
    assert message.startswith("cannot write")
    assert (out / "state.pt").read_bytes() == before
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


class _PoisonedJob(SegmentJob):
    """One image that turns into NaN."""

    poisoned = 5

    def sample(self, index: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        image, target = super().sample(index, rng)
        return (image * float("nan") if index == self.poisoned else image), target


def test_41_nan_loss_goes_back_and_says_so(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A batch that breaks the loss is left out, with its images named; the weights stay finite."""
    monkeypatch.setitem(jobs.JOBS, "segment", _PoisonedJob)  # type: ignore[index]
    result = foveal.train(tiny, out=tmp_path / "run", **{**SETTINGS, "epochs": 2})
    said = capfd.readouterr().err
    assert said.count("back to step") == 3  # once in each pass; the batches left out make it a third one
    assert "train_0005" in said or "0005" in said
    assert sorted(_losses(result.folder)) == list(range(1, 13))
    assert all(np.isfinite(list(_losses(result.folder).values())))
    assert all(t.isfinite().all() for t in read_state(result.best)[0].values())


def test_41_nan_in_every_batch_ends_the_run(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(foveal.TrainingError, match=r"became (nan|inf) at step \d+ \(images .*4th time"):
        foveal.train(tiny, out=tmp_path / "run", **{**SETTINGS, "lr": 1e18, "grad_clip": 0.0, "warmup": 0.0})


def _train_with_little_memory(data: Path, out: Path, settings: dict[str, Any], lines: Path) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    room = used + settings.pop("room") * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    _train(data, out, settings, lines)


def test_42_out_of_memory_goes_on_in_pieces(tiny: Path, tmp_path: Path, processes: Any) -> None:
    out, lines = tmp_path / "run", tmp_path / "errors"
    settings = {**SETTINGS, "crop": [512, 512], "batch_size": 12, "epochs": 1, "room": 1100, "val_split": ""}
    process = processes.Process(target=_train_with_little_memory, args=(tiny, out, settings, lines))
    process.start()
    process.join(240)
    said = lines.read_text()
    assert process.exitcode == 0, said
    assert "out of memory: going on with batches in" in said
    assert len(_losses(out)) == 2


def test_42_pieces_give_the_same_gradient(tiny: Path, tmp_path: Path) -> None:
    """Without batch statistics, a batch in pieces trains like a whole one, also where the pieces hold unlike shares."""
    settings = {**SETTINGS, "freeze_bn": True, "class_weights": "median", "epochs": 1, "precision": "fp64"}
    settings |= {"val_split": ""}
    at_once = foveal.train(tiny, out=tmp_path / "whole", **settings).folder
    pieces = foveal.train(tiny, out=tmp_path / "pieces", **settings, accumulate=4).folder
    first, second = _losses(at_once), _losses(pieces)
    assert first.keys() == second.keys()
    assert list(first.values()) == pytest.approx(list(second.values()), rel=1e-6)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_40_dead_loading_process_is_named(tiny: Path, tmp_path: Path) -> None:
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump({**SETTINGS, "workers": 1, "epochs": 1000}))
    command = [sys.executable, "-m", "foveal", "train", str(tiny), "--config", str(recipe), "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    _wait(lambda: (out / "log.jsonl").exists() and len(_losses(out)) >= 2)
    for worker in _children(process.pid):
        os.kill(worker, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "a data loading process died" in errors
    assert ".png" in errors.splitlines()[-1]
    assert "Traceback" not in errors


def _torchrun(data: Path, out: Path, settings: dict[str, Any], recipe: Path) -> list[str]:
    recipe.write_text(yaml.safe_dump(settings))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "foveal"]
    return [*launch, "train", str(data), "--config", str(recipe), "--out", str(out)]


def test_43_the_others_end_when_a_process_dies(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = _torchrun(tiny, out, {**SETTINGS, "epochs": 1000}, tmp_path / "recipe.yaml")
    launcher = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=_ONE_THREAD)
    _wait(lambda: (out / "log.jsonl").exists() and len(_losses(out)) >= 2)
    ranks = _children(launcher.pid)
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    assert launcher.wait(timeout=60) != 0
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    assert RunFolder(out).state.exists()


def test_two_processes_train_what_one_does(tiny: Path, tmp_path: Path) -> None:
    """The same global batch, norms over all of it, each validation image counted once: parameters to 1e-6.

    In float64: AdamW turns float32's rounding of a gradient near zero into a step of full size.
    """
    settings = {**SETTINGS, "batch_size": 8, "epochs": 7, "eval_every": 7, "class_weights": "median", "workers": 1}
    settings |= {"precision": "fp64", "loss": {"cross_entropy": 1.0}}
    one = foveal.train(tiny, out=tmp_path / "one", **settings).folder
    command = _torchrun(tiny, tmp_path / "two", settings, tmp_path / "recipe.yaml")
    subprocess.run(command, check=True, capture_output=True, env=_ONE_THREAD)
    first, second = _losses(one), _losses(tmp_path / "two")
    assert first.keys() == second.keys()
    assert len(first) == 21
    assert list(first.values()) == pytest.approx(list(second.values()), rel=1e-9)
    a, b = (read_state(folder / "last.safetensors")[0] for folder in (one, tmp_path / "two"))
    assert max((a[key].double() - b[key].double()).abs().max().item() for key in a) <= 1e-6
    scores = [json.loads((f / "log.jsonl").read_text().splitlines()[-1]) for f in (one, tmp_path / "two")]
    assert scores[0]["pixel_accuracy"] == scores[1]["pixel_accuracy"]
