"""How a run ends: early if it stops improving, with or without curves; and on which device it runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import foveal
from foveal.cli import main
from foveal.data.synthetic import write_shapes
from foveal.training import jobs
from foveal.training import train as train_file
from helpers.runs import SETTINGS, SMALL

FIGURES = [0.1, 0.3, 0.2, 0.25, 0.5, 0.4]
SHORT = {**SETTINGS, **SMALL, "epochs": 6, "eval_every": 1, "log_every": 0}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes"), train=4, val=1, size=(32, 32))


@dataclass
class Figure:
    """A validation figure that a test has chosen."""

    value: float

    @property
    def headline(self) -> tuple[str, float]:
        return "miou", self.value

    def to_dict(self) -> dict[str, Any]:
        return {"miou": self.value}


class Evaluations:
    """Evaluations with the chosen figures; SIGTERM comes during the one with number ``interrupted``, once."""

    def __init__(self, figures: list[float], interrupted: int = -1) -> None:
        self.figures, self.interrupted, self.done = figures, interrupted, 0

    def __call__(self, counts: Any) -> Figure:
        if self.done == self.interrupted:
            self.interrupted = -1
            os.kill(os.getpid(), signal.SIGTERM)
            return Figure(0.9)
        self.done += 1
        return Figure(self.figures[self.done - 1])


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.curves
def test_patience_ends_a_run_that_does_not_improve(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It stops after two evaluations below the best one, which is logged and printed; resuming does not continue it."""
    monkeypatch.setattr(jobs.SegmentJob, "scores", Evaluations(FIGURES))
    out = tmp_path / "run"
    found = foveal.train(shapes, out=out, patience=2, **SHORT)
    assert (len(found.losses), found.value) == (4, 0.3)
    assert [line.get("stopped") for line in lines(out)] == [None, None, None, "patience"]
    printed = capfd.readouterr().err
    assert "stopping after epoch 4: miou has not improved for 2 evaluations (patience)" in printed
    assert (out / "curves.png").exists()
    assert torch.load(out / "state.pt", weights_only=True)["progress"]["stale"] == 2
    before = (out / "log.jsonl").read_bytes()
    again = foveal.train(shapes, out=out, resume=True)
    assert (again.losses, again.value) == (found.losses, found.value)
    assert (out / "log.jsonl").read_bytes() == before


def test_without_patience_a_run_goes_on(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that patience ended continues if it is resumed with more; its losses are those of the whole run."""
    monkeypatch.setattr(jobs.SegmentJob, "scores", Evaluations(FIGURES))
    whole = foveal.train(shapes, out=tmp_path / "whole", **SHORT)
    assert (len(whole.losses), whole.value) == (6, 0.5)
    monkeypatch.setattr(jobs.SegmentJob, "scores", Evaluations(FIGURES))
    ended = foveal.train(shapes, out=tmp_path / "ended", patience=2, **SHORT)
    assert len(ended.losses) == 4
    resumed = foveal.train(shapes, out=tmp_path / "ended", resume=True, patience=3)
    assert (resumed.losses, resumed.value) == (whole.losses, whole.value)


def test_patience_outlasts_an_interruption(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a stop during the fourth evaluation and resuming, the third one without a better figure still counts."""
    monkeypatch.setattr(jobs.SegmentJob, "scores", Evaluations(FIGURES, interrupted=3))
    with pytest.raises(SystemExit):
        foveal.train(shapes, out=tmp_path, patience=2, **SHORT)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["progress"]["stale"] == 1
    found = foveal.train(shapes, out=tmp_path, resume=True)
    assert (len(found.losses), found.value) == (4, 0.3)


def test_patience_estimates_the_norms_before_it_ends_a_run(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like the last epoch. If the figure becomes better, it is recorded, and the run still ends."""
    monkeypatch.setattr(jobs.SegmentJob, "scores", Evaluations([0.3, 0.2, 0.9]))
    found = foveal.train(shapes, out=tmp_path, patience=1, bn_batches=1, **SHORT)
    assert (len(found.losses), found.value) == (2, 0.9)
    assert [line["miou"] for line in lines(tmp_path)] == [0.3, 0.9]
    assert (tmp_path / "best.safetensors").read_bytes() == (tmp_path / "last.safetensors").read_bytes()


def test_equal_figures_are_no_improvement(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.SegmentJob, "scores", Evaluations([0.3] * 6))
    assert len(foveal.train(shapes, out=tmp_path, patience=1, **SHORT).losses) == 2


@pytest.mark.curves
@pytest.mark.parametrize("broken", ["missing", "failing"])
def test_a_run_is_complete_without_a_plot_library(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], broken: str
) -> None:
    """If matplotlib is missing or fails, the run reports it in one line, and all its files are complete."""

    def fail(*_: Any, **__: Any) -> None:
        raise AttributeError("module 'numpy' has no attribute 'ptp'\nin a plot library")

    if broken == "missing":
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    else:
        monkeypatch.setattr(train_file, "draw_curves", fail)
    found = foveal.train(shapes, out=tmp_path, **{**SHORT, "epochs": 1})
    (note,) = [line for line in capfd.readouterr().err.splitlines() if "curves.png" in line]
    assert note.startswith("the run is complete, but curves.png could not be drawn: ")
    assert ("pip install matplotlib" if broken == "missing" else "'ptp' in a plot library") in note
    assert len(found.losses) == 1
    assert torch.load(tmp_path / "state.pt", weights_only=True)["progress"]["losses"] == list(found.losses)
    assert {"best.safetensors", "last.safetensors", "log.jsonl"} <= {path.name for path in tmp_path.iterdir()}
    assert not (tmp_path / "curves.png").exists()


def test_a_run_on_the_cpu(shapes: Path, tmp_path: Path) -> None:
    """Another run of the same Python process, or a resumed one, may use another device."""
    settings = {**SHORT, "epochs": 1, "val_split": ""}
    on_cpu = foveal.train(shapes, out=tmp_path / "cpu", device="cpu", **settings)
    assert yaml.safe_load((tmp_path / "cpu" / "config.yaml").read_text())["device"] == "cpu"
    auto = foveal.train(shapes, out=tmp_path / "auto", device="auto", **settings)
    assert auto.losses[0] == pytest.approx(on_cpu.losses[0], rel=1e-3)
    assert foveal.train(shapes, out=tmp_path / "cpu", resume=True, device="auto").losses == on_cpu.losses


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda:99", "device='cuda:99' is not on this machine: give auto, cpu"),
        ("gpu", "device='gpu' is no device: give auto, cpu"),
        ("cpu:1", "device='cpu:1' is not on this machine"),
    ],
)
def test_a_device_that_is_not_there_is_one_line(
    shapes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], device: str, message: str
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["train", str(shapes), "--out", str(tmp_path / "run"), "--device", device])
    printed = capfd.readouterr().err
    assert end.value.code == 2
    assert message in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_run_of_an_earlier_version_is_resumed(shapes: Path, tmp_path: Path) -> None:
    """Its settings have no ``device`` and no ``patience``, its state counts no evaluations."""
    settings = {**SHORT, "epochs": 2, "val_split": ""}
    whole = foveal.train(shapes, out=tmp_path / "run", **settings)
    shutil.copytree(tmp_path / "run", tmp_path / "earlier")
    config = tmp_path / "earlier" / "config.yaml"
    values = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump({k: v for k, v in values.items() if k not in ("device", "patience")}))
    state = torch.load(tmp_path / "earlier" / "state.pt", weights_only=True)
    del state["progress"]["stale"]
    torch.save(state, tmp_path / "earlier" / "state.pt")
    assert foveal.train(shapes, out=tmp_path / "earlier", resume=True).losses == whole.losses
