"""The folder of a training run: settings, log, averaged weights, and the state that a run resumes from.

``config.yaml`` (all settings), ``log.jsonl`` (a line per epoch, and per ``log_every`` steps), ``last.safetensors`` and
``best.safetensors`` (averaged weights with their description), ``state.pt`` (everything that ``resume`` needs),
``bad.txt`` if training images were left out. Every file but the log is written under a temporary name and then renamed;
the log grows line by line.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from ..config import build_config, read_yaml, to_dict
from ..errors import CheckpointError, ConfigError, InputError
from ..files import atomic_write, remove_leftovers
from ..info import ModelInfo
from ..weights.checkpoints import check_torch_reads_safely, read_pickled, read_state, save_checkpoint
from .config import TASK_SETTINGS, TrainConfig, build_settings, own_fields
from .distributed import full_state_dict, load_full_state_dict
from .run_state import RunState
from .settings import resumable_settings, setting_fields

NEW_PHASE = "--new-phase, new_phase=True"


class RunFolder:
    """The files of one run; with ``writes=False``, as in all processes but the first, they are only read."""

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

    @property
    def curves(self) -> Path:
        return self.path / "curves.png"

    def check_new(self) -> None:
        """Raise ConfigError if the folder already has a run that has done a step."""
        if self.state.exists() and not self._has_done_no_step():
            raise ConfigError(f"{self.path} holds a run already: resume it, or choose another folder")

    def _has_done_no_step(self) -> bool:
        """Whether only the start of a run was saved, as when its first batch shows a mistake in the settings."""
        if self.log_file.exists() or self.best.exists():
            return False
        try:
            _, info = read_state(self.last)
        except CheckpointError:
            return False
        return info is not None and info.notes.get("log") == {"step": 0}

    def check_resumable(self, config: TrainConfig, new_phase: bool = False) -> dict[str, Any]:
        """Check that the folder's run can be resumed with these settings.

        Returns:
            The settings of the new phase that differ from those before it, those included that any resumed run may
            change.

        Raises:
            ConfigError: there is nothing to resume, or the run has other settings; for a new phase, other settings that
                a phase cannot change, or none.
            CheckpointError: this version of torch does not read a state safely.
        """
        if not self.state.exists():
            raise ConfigError(f"{self.path}: nothing to resume: there is no {self.state.name}; leave resume out")
        check_torch_reads_safely(self.state, f"start a run from {self.last.name}")
        file = self.config_file
        before, now = to_dict(self.read_config()), to_dict(config)
        free = resumable_settings(config)
        differing = [name for name in now if before[name] != now[name]]
        changed = [name for name in differing if name not in free]
        phased = {declared.name for declared, info in setting_fields(config) if info.phased}
        fixed = [name for name in changed if name not in phased]
        if changed and not (new_phase and not fixed):
            names = ", ".join(fixed if new_phase else changed)
            hint = "" if fixed else f", or begin a new phase ({NEW_PHASE})"
            raise ConfigError(f"{self.path} was started with another {names}: resume with {file}{hint}")
        if new_phase and not changed:
            raise ConfigError(f"{NEW_PHASE}: all settings are those of {file}: give more epochs or another batch_size")
        return {name: now[name] for name in differing} if new_phase else {}

    def read_config(self) -> TrainConfig:
        """Read the run's settings. Those that are newer than the file are as they were before they existed.

        Settings of other tasks, which older versions wrote as well, are left out.

        Raises:
            ConfigError: the file is damaged.
        """
        values = {"backbone_lr_scale": 1.0, "task": "segment"} | read_yaml(self.config_file)
        others = (own_fields(task) for task in TASK_SETTINGS if task != values["task"])
        for declared, _ in itertools.chain.from_iterable(others):
            values.pop(declared.name, None)
        return build_settings(values, str(self.config_file))

    def clear_leftovers(self) -> None:
        """Remove temporary files of a killed process: one for a state is as large as four models."""
        if self.writes:
            remove_leftovers(self.path)

    def write_config(self, config: TrainConfig) -> None:
        if self.writes:
            with atomic_write(self.config_file) as file:
                file.write_text(yaml.safe_dump(to_dict(config), sort_keys=False))

    def keep_config(self, phase: int) -> None:
        """Keep the settings of a phase that is over, as ``config.1.yaml`` for the first one."""
        if self.writes:
            with atomic_write(self.path / f"config.{phase}.yaml") as file:
                file.write_bytes(self.config_file.read_bytes())

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
        """Add an epoch's line to the log, and to ``log.csv`` if ``config`` says so."""
        self.log(line)
        if self.writes and config.csv:
            self._write_csv()

    def lines(self) -> list[dict[str, Any]]:
        """The lines of the log; damaged ones are left out."""
        return [line for line in self._read_log() if line is not None]

    def _read_log(self) -> list[dict[str, Any] | None]:
        """The lines of the log, ``None`` for a damaged one: a killed process or a full disk may leave half a line."""
        text = self.log_file.read_text(encoding="utf-8", errors="replace") if self.log_file.exists() else ""
        return [_parse_line(line) for line in text.split("\n") if line]

    def cut_log(self, step: int, epochs: int) -> int:
        """Drop lines after ``step`` and ``epochs``: a process may be killed between writing the log and the state.

        Returns:
            The number of damaged lines, which are dropped too.
        """
        if not self.writes:
            return 0
        found = self._read_log()
        lines = [line for line in found if line and line["step"] <= step and line.get("epoch", 0) <= epochs]
        with atomic_write(self.log_file) as file:
            file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return found.count(None)

    def _write_csv(self) -> None:
        """Write the log's epochs to ``log.csv``, without nested figures."""
        flat = [
            {k: v for k, v in line.items() if not isinstance(v, dict | list)}
            for line in self.lines()
            if "epoch" in line
        ]
        columns = list(dict.fromkeys(key for line in flat for key in line))
        with atomic_write(self.path / "log.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, columns)
            table.writeheader()
            table.writerows(flat)

    def save_weights(self, state: Mapping[str, Tensor], info: ModelInfo, best: bool) -> None:
        """Write ``last.safetensors`` and, if ``best``, the same as ``best.safetensors``."""
        if self.writes:
            for path in (self.last, self.best) if best else (self.last,):
                save_checkpoint(path, state, info)

    def save_state(self, parts: Mapping[str, Any], state: RunState) -> None:
        """Write the unsharded ``state_dict`` of every part, and ``state``; every process must call this."""
        states: dict[str, Any] = {name: full_state_dict(part, self.writes) for name, part in parts.items()}
        if not self.writes:
            return
        with atomic_write(self.state) as temporary, temporary.open("wb") as file:
            try:
                torch.save({**states, "progress": vars(state)}, file)
            except RuntimeError as error:  # torch raises its own error, which does not say that the disk is full
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

    def load_state(self, parts: Mapping[str, Any], check: Callable[[RunState], None] = lambda _: None) -> RunState:
        """Load every part from the file of :meth:`save_state`, with any number of processes.

        Args:
            parts: what to load, by name.
            check: called with the progress before anything is loaded; it may raise an error of its own.

        Raises:
            CheckpointError: the file is damaged or belongs to another model.
        """
        with self._errors_of_state():
            states = read_pickled(self.state, f"start again from {self.best.name}")
            progress = build_config(RunState, states["progress"], "progress")
        check(progress)
        with self._errors_of_state():
            for name, part in parts.items():
                load_full_state_dict(part, states[name])
        return progress

    @contextmanager
    def _errors_of_state(self) -> Iterator[None]:
        """Context manager that raises CheckpointError for all errors of reading the state."""
        try:
            yield
        except Exception as error:  # pickle, zip and torch each raise their own errors
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{self.state}: cannot be resumed from ({reason}); start again from {self.best.name}"
            ) from error


def _parse_line(text: str) -> dict[str, Any] | None:
    """A line of the log, ``None`` if it is damaged."""
    try:
        line = json.loads(text)
        numbers = line["step"], line.get("epoch", 0)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
    return line if all(isinstance(number, int) for number in numbers) else None
