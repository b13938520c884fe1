"""The folder of a training run: settings, log, averaged weights, and the state that a run resumes from.

``config.yaml`` (all settings), ``log.jsonl`` (a line per epoch, and per ``log_every`` steps), ``last.safetensors`` and
``best.safetensors`` (averaged weights with their description), ``state.pt`` (everything that ``resume`` needs),
``bad.txt`` where training images were left out. Every file but the log is written aside and renamed; the log grows line
by line.
"""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from ..config import build_config, read_yaml, to_dict
from ..errors import CheckpointError, ConfigError, DependencyError, InputError
from ..files import atomic_write
from ..info import ModelInfo
from ..weights.checkpoints import check_torch_reads_safely, save_checkpoint
from .config import TrainConfig
from .distributed import load_whole_state, whole_state

#: Settings that a resumed run may change: they do not touch the numbers.
_RESUMABLE = ("workers", "save_minutes", "tensorboard", "csv", "fsdp", "embeddings", "max_bad")


@dataclass
class RunState:
    """Where a run stands, in plain values.

    Attributes:
        images: training images, to tell another data set.
        data: digest of their names and the classes' for the same end; empty: unknown.
        parts: pieces that each process's batch is cut into: doubled when memory runs out.
        step: optimiser steps done.
        skipped: batches of data that were left out after a loss that was not finite.
        rollbacks: how often that happened.
        total: sum of the losses of this epoch so far.
        losses: mean loss of each whole epoch.
        best: highest validation figure so far.
        best_metric: its name.
        seconds: time spent training.
        bad: indices of training images that are left out -> why.
    """

    images: int
    data: str = ""
    parts: int = 1
    step: int = 0
    skipped: int = 0
    rollbacks: int = 0
    total: float = 0.0
    losses: list[float] = field(default_factory=list)
    best: float = -1.0
    best_metric: str = ""
    seconds: float = 0.0
    bad: dict[int, str] = field(default_factory=dict)

    @property
    def position(self) -> int:
        """Batches of data behind the run."""
        return self.step + self.skipped


class RunFolder:
    """Reads and writes one run's files; ``writes=False`` for the processes that only take part."""

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path, self.writes = path, writes

    @property
    def best(self) -> Path:
        return self.path / "best.safetensors"

    @property
    def last(self) -> Path:
        return self.path / "last.safetensors"

    @property
    def state(self) -> Path:
        return self.path / "state.pt"

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def log_file(self) -> Path:
        return self.path / "log.jsonl"

    def check_new(self) -> None:
        """Raises ConfigError where a run is already."""
        if self.state.exists():
            raise ConfigError(f"{self.path} holds a run already: resume it, or choose another folder")

    def check_resumable(self, config: TrainConfig) -> None:
        """Refuse to resume what cannot be.

        Raises:
            ConfigError: there is nothing to resume, or ``config`` is not the run's.
            CheckpointError: this torch does not read a state safely.
        """
        if not self.state.exists():
            raise ConfigError(f"{self.path}: nothing to resume")
        check_torch_reads_safely(self.state, f"start a run from {self.last.name}")
        file = self.config_file
        before = to_dict(build_config(TrainConfig, read_yaml(file), str(file)))  # a newer setting has its default there
        wanted = {key: value for key, value in to_dict(config).items() if key not in _RESUMABLE}
        changed = [key for key, value in wanted.items() if before[key] != value]
        if changed:
            raise ConfigError(f"{self.path} was started with another {', '.join(changed)}: resume with {file}")

    def clear_leftovers(self) -> None:
        """Remove what a killed process had begun to write: a state is as large as four models."""
        if self.writes:
            drawn = self.path / "curves.png", self.path / "log.csv", self.path / "bad.txt"
            for file in (self.state, self.last, self.best, self.log_file, self.config_file, *drawn):
                for path in self.path.glob(f".{file.stem}-*{file.suffix}"):
                    path.unlink()

    @staticmethod
    def check_formats(config: TrainConfig) -> None:
        """Raises DependencyError where a format of the log needs what is not installed."""
        if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise DependencyError("tensorboard=True needs a package that is not installed: pip install tensorboard")

    def write_config(self, config: TrainConfig) -> None:
        if self.writes:
            with atomic_write(self.config_file) as file:
                file.write_text(yaml.safe_dump(to_dict(config), sort_keys=False))

    def write_bad(self, bad: Iterable[str]) -> None:
        """List bad files in ``bad.txt``, one path per line, as ``exclude`` in ``dataset.yaml`` takes it."""
        if self.writes:
            with atomic_write(self.path / "bad.txt") as file:
                file.write_text("".join(f"{path}\n" for path in sorted(bad)), "utf-8", errors="surrogateescape")

    def log(self, line: Mapping[str, Any]) -> None:
        """Add a line to the log.

        Raises:
            InputError: it cannot be written.
        """
        if self.writes:
            try:
                with self.log_file.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            except OSError as error:
                raise InputError(f"cannot write {self.log_file}: {error.strerror}") from error

    def log_epoch(self, line: Mapping[str, Any], config: TrainConfig) -> None:
        """The same for an epoch's line, in the other formats too that ``config`` wants."""
        self.log(line)
        if self.writes and config.csv:
            self._write_csv()
        if self.writes and config.tensorboard:
            _tensorboard(self.path, line)

    def lines(self) -> list[dict[str, Any]]:
        text = self.log_file.read_text(encoding="utf-8") if self.log_file.exists() else ""
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def cut_log(self, step: int, epochs: int) -> None:
        """Drop lines after ``step`` and ``epochs``: a crash may come between the log and the state."""
        if self.writes:
            kept = [line for line in self.lines() if line["step"] <= step and line.get("epoch", 0) <= epochs]
            with atomic_write(self.log_file) as file:
                file.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def _write_csv(self) -> None:
        """The log's epochs as ``log.csv``, nested figures left out."""
        flat = [
            {k: v for k, v in line.items() if not isinstance(v, dict | list)}
            for line in self.lines()
            if "epoch" in line
        ]
        with atomic_write(self.path / "log.csv") as temporary, temporary.open("w", newline="") as file:
            table = csv.DictWriter(file, list(dict.fromkeys(key for line in flat for key in line)))
            table.writeheader()
            table.writerows(flat)

    def save_weights(self, state: Mapping[str, Tensor], info: ModelInfo, best: bool) -> None:
        """Write ``last.safetensors``, and the same as ``best.safetensors`` where they are that."""
        if self.writes:
            for path in (self.last, self.best) if best else (self.last,):
                save_checkpoint(path, state, info)

    def save_state(self, parts: Mapping[str, Any], state: RunState) -> None:
        """Write the whole ``state_dict`` of every part, and ``state``; every process must call this."""
        found: dict[str, Any] = {name: whole_state(part, self.writes) for name, part in parts.items()}
        if not self.writes:
            return
        with atomic_write(self.state) as temporary, temporary.open("wb") as file:
            try:
                torch.save({**found, "progress": vars(state)}, file)
            except RuntimeError as error:  # torch's own, which does not say that the disk is full
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

    def load_state(self, parts: Mapping[str, Any]) -> RunState:
        """Put every part where :meth:`save_state` found it, with whatever number of processes.

        Raises:
            CheckpointError: the file is damaged or of another model.
        """
        try:
            found = torch.load(self.state, map_location="cpu", weights_only=True)
            for name, part in parts.items():
                load_whole_state(part, found[name])
            return RunState(**found["progress"])
        except Exception as error:  # pickle, zip and torch each raise their own
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{self.state}: cannot be resumed from ({reason}); start again from {self.best.name}"
            ) from error


def _tensorboard(folder: Path, line: Mapping[str, Any]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard")) as writer:
        for key, value in line.items():
            if isinstance(value, int | float) and key not in ("epoch", "step"):
                writer.add_scalar(key, value, line["step"])
