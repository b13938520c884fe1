"""The folder of a training run: settings, log, averaged weights, and the state that a run resumes from.

``config.yaml`` (all settings), ``log.jsonl`` (a line per epoch, and per ``log_every`` steps), ``last.safetensors`` and
``best.safetensors`` (averaged weights with their description), ``state.pt`` (everything that ``resume`` needs). Every
file but the log is written aside and renamed; the log grows line by line.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from ..config import TrainConfig, build_config, read_yaml, to_dict
from ..errors import CheckpointError, ConfigError
from ..files import written_whole

#: Settings that a resumed run may change: they do not touch the numbers.
_FREE = ("workers", "save_minutes", "tensorboard", "csv")


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
    def log_file(self) -> Path:
        return self.path / "log.jsonl"

    def check_new(self) -> None:
        """Raises ConfigError where a run is already."""
        if self.state.exists():
            raise ConfigError(f"{self.path} holds a run already: resume it, or choose another folder")

    def check_resumable(self, config: TrainConfig) -> None:
        """Raises ConfigError where there is nothing to resume, or ``config`` is not the run's."""
        if not self.state.exists():
            raise ConfigError(f"{self.path}: nothing to resume")
        file = self.path / "config.yaml"
        before = to_dict(build_config(TrainConfig, read_yaml(file), str(file)))  # a newer setting has its default there
        wanted = {key: value for key, value in to_dict(config).items() if key not in _FREE}
        changed = [key for key, value in wanted.items() if before[key] != value]
        if changed:
            raise ConfigError(f"{self.path} was started with another {', '.join(changed)}: resume with {file}")

    def write_config(self, config: TrainConfig) -> None:
        if self.writes:
            with written_whole(self.path / "config.yaml") as file:
                file.write_text(yaml.safe_dump(to_dict(config), sort_keys=False))

    def log(self, line: Mapping[str, Any]) -> None:
        if self.writes:
            with self.log_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def lines(self) -> list[dict[str, Any]]:
        text = self.log_file.read_text(encoding="utf-8") if self.log_file.exists() else ""
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def cut_log(self, step: int) -> None:
        """Drop lines after ``step``: a crash may come between the log and the state."""
        if self.writes:
            kept = [line for line in self.lines() if line["step"] <= step]
            with written_whole(self.log_file) as file:
                file.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def write_csv(self) -> None:
        """The log's epochs as ``log.csv``, nested figures left out."""
        lines = [line for line in self.lines() if "epoch" in line]
        if self.writes and lines:
            flat = [{k: v for k, v in line.items() if not isinstance(v, dict | list)} for line in lines]
            with written_whole(self.path / "log.csv") as temporary, temporary.open("w", newline="") as file:
                table = csv.DictWriter(file, list(dict.fromkeys(key for line in flat for key in line)))
                table.writeheader()
                table.writerows(flat)

    def save_state(self, parts: Mapping[str, Any], progress: Mapping[str, Any]) -> None:
        """Write the ``state_dict`` of every part, and the plain values of ``progress``."""
        if self.writes:
            with written_whole(self.state) as temporary:
                states = {name: part.state_dict() for name, part in parts.items()}
                whole = io.BytesIO()  # torch's own writer turns a full disk into an error without a reason
                torch.save({**states, "progress": dict(progress)}, whole)
                temporary.write_bytes(whole.getbuffer())

    def load_state(self, parts: Mapping[str, Any]) -> dict[str, Any]:
        """Put every part where :meth:`save_state` found it; returns ``progress``.

        Raises:
            CheckpointError: the file is damaged or of another model.
        """
        try:
            found = torch.load(self.state, map_location="cpu", weights_only=True)
            for name, part in parts.items():
                part.load_state_dict(found[name])
            return dict(found["progress"])
        except Exception as error:  # pickle, zip and torch each raise their own
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{self.state}: cannot be resumed from ({reason}); start again from {self.best.name}"
            ) from error
