"""Programs that a run sends its log to, beside its own files. A new one is a function and a line of the table.

Each is imported when a run uses it. An error of a tracker never ends a run that has begun.
"""

from __future__ import annotations

import importlib.util
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ..config import to_dict
from ..errors import ConfigError, DependencyError
from ..files import atomic_write
from .common_settings import CommonSettings

_PROJECT = "foveal"  # name of the project or experiment, unless the tracker's own environment variable names another


class Log(Protocol):
    """An open log of a tracker."""

    def write(self, figures: Mapping[str, float], step: int) -> None:
        """Add figures by name."""
        ...

    def close(self) -> None:
        """Send what is left."""
        ...


class Tracker(NamedTuple):
    """A tracker.

    Attributes:
        package: module that it needs.
        open: begins or continues the log of a run, whose folder and settings are given.
    """

    package: str
    open: Callable[[Path, CommonSettings], Log]


class _TensorBoard:
    def __init__(self, folder: Path, config: CommonSettings) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder, self.writer = str(folder / "tensorboard"), SummaryWriter

    def write(self, figures: Mapping[str, float], step: int) -> None:
        with self.writer(self.folder) as writer:
            for name, value in figures.items():
                writer.add_scalar(name, value, step)

    def close(self) -> None:
        pass


class _WandB:
    def __init__(self, folder: Path, config: CommonSettings) -> None:
        import wandb  # pyright: ignore[reportMissingImports] - not among the test tools, for its size

        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=folder.resolve().name,
            id=_identifier(folder / "wandb.id"),
            dir=str(folder),
            config=to_dict(config),
            resume="allow",
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )

    def write(self, figures: Mapping[str, float], step: int) -> None:
        self.run.log(dict(figures), step=step)

    def close(self) -> None:
        self.run.finish()


class _MLflow:
    def __init__(self, folder: Path, config: CommonSettings) -> None:
        from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports] - likewise

        self.client, file = MlflowClient(), folder / "mlflow.id"
        if file.exists():
            self.id = file.read_text("utf-8").strip()
            self.client.update_run(self.id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        known = self.client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self.client.create_experiment(name)
        self.id = self.client.create_run(experiment, run_name=folder.resolve().name).info.run_id
        for key, value in to_dict(config).items():
            self.client.log_param(self.id, key, str(value)[:500])
        with atomic_write(file) as temporary:
            temporary.write_text(self.id, "utf-8")

    def write(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self.client.log_metric(self.id, name, value, step=step)

    def close(self) -> None:
        self.client.set_terminated(self.id)


#: By the name of the setting that switches it on, which is also that of the extra.
TRACKERS: Mapping[str, Tracker] = {
    "tensorboard": Tracker("tensorboard", _TensorBoard),
    "wandb": Tracker("wandb", _WandB),
    "mlflow": Tracker("mlflow", _MLflow),
}


def check_trackers(config: CommonSettings) -> None:
    """Raise DependencyError if a tracker that the settings switch on is not installed."""
    for name, tracker in TRACKERS.items():
        if getattr(config, name) and importlib.util.find_spec(tracker.package) is None:
            raise DependencyError(f"{name}=True needs a package that is not installed: pip install 'foveal[{name}]'")


class Trackers:
    """The open logs of a run.

    Args:
        folder: folder of the run.
        config: its settings.
        note: called with one line if a tracker fails.
        writes: whether this process is the one that writes; the others send nothing.

    Raises:
        ConfigError: a tracker cannot begin.
    """

    def __init__(self, folder: Path, config: CommonSettings, note: Callable[[str], None], writes: bool = True) -> None:
        self.note = note
        self.logs: dict[str, Log] = {}
        for name, tracker in TRACKERS.items():
            if writes and getattr(config, name):
                try:
                    self.logs[name] = tracker.open(folder, config)
                except Exception as error:  # each raises its own errors
                    raise ConfigError(f"{name} cannot begin: {_reason(error)}") from error

    def write(self, line: Mapping[str, Any]) -> None:
        """Send the numbers of an epoch's line of the log."""
        figures = {
            key: float(value)
            for key, value in line.items()
            if isinstance(value, int | float) and key not in ("epoch", "step")
        }
        self._all(lambda log: log.write(figures, line["step"]))

    def close(self) -> None:
        """Close all logs."""
        self._all(lambda log: log.close())

    def _all(self, act: Callable[[Log], None]) -> None:
        for name, log in self.logs.items():
            try:
                act(log)
            except Exception as error:
                self.note(f"{name} failed, and the run goes on: {_reason(error)}")


def _identifier(file: Path) -> str:
    """A name for the run on a server, which a resumed run finds again."""
    if not file.exists():
        with atomic_write(file) as temporary:
            temporary.write_text(uuid.uuid4().hex, "utf-8")
    return file.read_text("utf-8").strip()


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
