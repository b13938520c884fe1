"""The log reaches each tracker, without a network; a tracker that fails does not end the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from foveal.errors import ConfigError
from foveal.training.trackers import TRACKERS, Tracker, Trackers

LINES = [{"epoch": i, "step": 4 * i, "loss": 1 / i, "lr": 0.1, "iou": {"a": 1.0}, "only_class": "a"} for i in (1, 2)]


class Config:
    """Settings of which each tracker is off."""

    tensorboard = wandb = mlflow = False


class _Broken:
    def __init__(self, folder: Path, config: Any) -> None:
        self.lines: list[Any] = []

    def write(self, figures: Any, step: int) -> None:
        self.lines.append((step, dict(figures)))
        raise RuntimeError("no\nconnection")

    def close(self) -> None:
        self.lines.append("closed")


def test_a_tracker_is_one_line_and_may_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRACKERS, "broken", Tracker("json", _Broken))  # pyright: ignore[reportArgumentType]
    config, notes = Config(), list[str]()
    config.broken = True  # pyright: ignore[reportAttributeAccessIssue]
    logs = Trackers(tmp_path, config, notes.append)  # pyright: ignore[reportArgumentType]
    logs.write(LINES[0])
    logs.close()
    assert notes == ["broken failed, and the run goes on: no connection"]
    assert logs.logs["broken"].lines == [(4, {"loss": 1.0, "lr": 0.1}), "closed"]  # pyright: ignore[reportAttributeAccessIssue]
    assert not Trackers(tmp_path, config, notes.append, writes=False).logs  # pyright: ignore[reportArgumentType]


def test_a_tracker_that_cannot_begin_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path, config: Any) -> Any:
        raise ValueError("no account")

    monkeypatch.setitem(TRACKERS, "wandb", Tracker("json", refuse))  # pyright: ignore[reportArgumentType]
    config = Config()
    config.wandb = True
    with pytest.raises(ConfigError, match="wandb cannot begin: no account"):
        Trackers(tmp_path, config, print)  # pyright: ignore[reportArgumentType]


def _log_twice(folder: Path, name: str) -> None:
    """Log two epochs, in a run that is resumed after the first."""
    from foveal.training.config import TrainConfig

    for line in LINES:
        logs = Trackers(folder, TrainConfig(**{name: True}), pytest.fail)
        assert list(logs.logs) == [name]
        logs.write(line)
        logs.close()


@pytest.mark.long
def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    _log_twice(tmp_path, "mlflow")
    client = MlflowClient()
    experiment = client.get_experiment_by_name("foveal")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["model"] == "efficientvit_b0"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(4, 1.0), (8, 0.5)]
    assert set(run.data.metrics) == {"loss", "lr"}


@pytest.mark.long
def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    _log_twice(tmp_path, "wandb")
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    identifier = (tmp_path / "wandb.id").read_text()
    assert len({run.name.rpartition("-")[2] for run in runs}) == 1
    assert runs[0].name.endswith(identifier)
    content = b"".join(file.read_bytes() for run in runs for file in run.glob("*.wandb"))
    assert b"loss" in content
    assert b"only_class" not in content


@pytest.mark.long
def test_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _log_twice(tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(4, 1.0), (8, 0.5)]


def test_every_tracker_has_a_setting_and_an_extra() -> None:
    from foveal.training.config import TrainConfig

    text = (Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8")
    for name in TRACKERS:
        assert getattr(TrainConfig(), name) is False
        assert f"\n{name} = [" in text
