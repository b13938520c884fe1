"""Training: one loop on accelerate for every task, so that ``torchrun`` scales the same command.

Two runs of the same settings on the same machine give the same numbers, whether they were interrupted or not: the
order of the samples, their augmentation and the model's own draws depend on the seed and the step alone, and
``state.pt`` (see :mod:`foveal.training.folder`) holds the rest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..config import build_config, read_yaml, to_dict
from ..data.shards import find_shards, is_pattern
from ..errors import ConfigError, DataError, InputError, TrainingError
from ..evaluation.metrics import in_words
from ..factory.create import create_model
from ..info import info_of
from ..progress import Progress
from ..tasks.prompt import PromptModel
from .batches import Loader
from .config import TrainConfig
from .curves import draw_curves
from .distributed import gather_dict, make_accelerator, reduce_max
from .folder import RunFolder, RunState
from .job import Job
from .jobs import JOBS
from .signals import interrupts
from .step import Stepper
from .validate import estimate_norms, score

_POLL = 10  # steps between looks at what all processes must agree on: each look waits for the device
_ROLLBACKS = 3  # times that a run may go back after a loss that is not finite


@dataclass(frozen=True)
class TrainResult:
    """Where a run is and what it reached.

    Attributes:
        folder: the run.
        best: checkpoint with the highest figure on the validation split (the last one without such a split).
        metric: name of that figure, "miou" or "top1".
        value: that figure, NaN without a validation split.
        losses: mean training loss per epoch.
        bad: training images that others stood in for -> why; a line each in the folder's ``bad.txt``.
    """

    folder: Path
    best: Path
    metric: str
    value: float
    losses: tuple[float, ...]
    bad: Mapping[str, str] = field(default_factory=dict)


def train(
    data: str | Path,
    *,
    config: TrainConfig | str | Path | None = None,
    out: str | Path = "runs/train",
    resume: bool = False,
    **overrides: Any,
) -> TrainResult:
    """Train a model for the task that ``config`` names.

    SIGTERM and Ctrl-C save the state at the next step and end the process; ``resume`` goes on from there.

    Args:
        data: folder of the data set (see :mod:`foveal.data`), or a pattern of tar files.
        config: recipe, as an object or a YAML file; default: the run's own when resuming, else
            :class:`~foveal.training.config.TrainConfig`'s defaults.
        out: folder of the run.
        resume: go on from ``out``'s last saved step.
        **overrides: fields of TrainConfig that replace the recipe's.

    Raises:
        ConfigError: unknown or impossible setting; ``out`` holds a run already; nothing to resume.
        DataError: the data set cannot be used.
        CheckpointError: the state to resume from cannot be read.
        TrainingError: the loss stays NaN or infinite, memory does not suffice for one image, a loading process died.
    """
    folder = RunFolder(Path(out))
    if resume and config is None and folder.config_file.exists():
        config = folder.config_file
    config = _settings(config, overrides)
    if config.teacher and not config.embeddings:
        config = dataclasses.replace(config, embeddings=str(folder.path / "embeddings"))
    folder.check_resumable(config) if resume else folder.check_new()
    accelerator = make_accelerator(config)
    folder.check_formats(config)
    folder.writes = accelerator.is_main_process
    progress = Progress(enabled=accelerator.is_main_process)
    torch.manual_seed(config.seed)
    root = find_shards(data)[0] if is_pattern(data) else Path(data)
    run = _Run(config, JOBS[config.task](data, config, progress), root, accelerator, folder, progress)
    run.resume() if resume else run.start()
    with interrupts() as interrupted:
        run.go(interrupted)
    accelerator.wait_for_everyone()
    state = run.state
    bad = {str(run.job.data.name(index)): reason for index, reason in state.bad.items()}
    value = state.best if run.job.validation else float("nan")
    return TrainResult(folder.path, folder.best, state.best_metric, value, tuple(state.losses), bad)


class _Run:
    """A training run in memory."""

    def __init__(
        self, config: TrainConfig, job: Job, root: Path, accelerator: Accelerator, folder: RunFolder, progress: Progress
    ) -> None:
        self.config, self.job, self.root, self.accelerator = config, job, root, accelerator
        self.folder, self.progress = folder, progress
        dtype = torch.float64 if config.precision == "fp64" else torch.float32
        self.loader = Loader(job, config, accelerator, dtype, progress)
        self.steps = config.epochs * self.loader.per_epoch
        model = create_model(
            config.model,
            config.task,
            num_classes=len(job.labels.names),
            weights=config.weights or None,
            **config.options,
        )
        self.stepper = Stepper(model.to(dtype), config, job, self.steps, accelerator, progress)
        self.info = info_of(model).replace(labels=job.labels, preprocess=job.preprocess, tag="")
        self.state = RunState(len(job.data), _digest(job))
        self.saved_at = time.monotonic()

    def start(self) -> None:
        """Put the settings and the first state into the folder."""
        self.progress.note(
            f"{self.state.images} training images, {self.loader.per_epoch} steps per epoch, {self.steps} in all"
        )
        self.folder.write_config(self.config)
        self.save()

    def resume(self) -> None:
        """Go to where the folder's state stands.

        Raises:
            ConfigError: the state is of another data set.
            CheckpointError: the state cannot be read.
        """
        self.folder.clear_leftovers()
        found = self._load()
        if found.images != self.state.images:
            raise ConfigError(
                f"{self.folder.path} was trained on {found.images} images, this data set has {self.state.images}"
            )
        if found.data and found.data != self.state.data:
            raise ConfigError(f"{self.folder.path} was trained on images or classes of other names: another data set?")
        self.state = found
        self.stepper.pieces = found.parts
        for index, reason in found.bad.items():
            with suppress(DataError, InputError):  # it may have been repaired
                self.job.data[index]
                continue
            self.loader.bad[index] = DataError(reason)
        self._merge_bad()
        self.progress.note(f"resuming after step {found.step} of {self.steps}")

    def save(self) -> None:
        self.state.parts = self.stepper.pieces
        self._merge_bad()
        self.folder.save_state(self.stepper.parts, self.state)
        self.saved_at = time.monotonic()

    def _merge_bad(self) -> None:
        """Have all processes know of each other's bad images, and list them."""
        self.loader.note_bad(gather_dict(self.loader.bad, self.accelerator))
        known, self.state.bad = self.state.bad, {index: str(error) for index, error in self.loader.bad.items()}
        if self.state.bad.keys() != known.keys():
            paths = (self.job.data.name(index) for index in self.state.bad)
            inside = (path.relative_to(self.root) if path.is_relative_to(self.root) else path for path in paths)
            self.folder.write_bad({path.as_posix() for path in inside})

    def _load(self) -> RunState:
        found = self.folder.load_state(self.stepper.parts)
        self.folder.cut_log(found.step, len(found.losses))
        return found

    def go(self, interrupted: Callable[[], int]) -> None:
        """Train to the end, or until ``interrupted()`` names a signal.

        Raises:
            TrainingError: see :func:`train`.
        """
        self.batches = self.loader.batches(self.state.position)
        try:
            self._go(interrupted)
        except RuntimeError as error:
            if death := self.loader.death(error):
                raise death from error
            raise
        finally:
            self.batches.close()

    def _go(self, interrupted: Callable[[], int]) -> None:
        config = self.config
        started_at = time.monotonic() - self.state.seconds
        with self.progress.bar("train", self.steps, self.state.step) as bar:
            while True:
                if self.state.step // self.loader.per_epoch > len(self.state.losses):
                    self._end_epoch(interrupted)
                if self.state.step == self.steps:
                    break
                indices, image, target = next(self.batches)
                self.loader.check_bad()
                loss = self.stepper(image, target, self.state.position)
                if not math.isfinite(loss):
                    self._go_back(loss, indices)
                    self.batches = self.loader.batches(self.state.position)
                    continue
                state = self.state
                state.step += 1
                state.total += loss
                state.seconds = time.monotonic() - started_at
                epoch = -(-state.step // self.loader.per_epoch)
                bar.advance(f"epoch {epoch}/{config.epochs} loss {loss:.3f}")
                if config.log_every and state.step % config.log_every == 0:
                    self.folder.log({"step": state.step, "loss": loss, "lr": self.stepper.lr})
                if signal_number := self._agreed(interrupted()):
                    self.save()
                    self.accelerator.wait_for_everyone()  # torchrun soon kills those that outlive the first to end
                    self.progress.note(
                        f"stopped after step {state.step}; resume with --resume --out {self.folder.path}"
                    )
                    raise SystemExit(128 + signal_number)
                if self._agreed(time.monotonic() - self.saved_at > 60 * config.save_minutes):
                    self.save()

    def _agreed(self, value: int) -> int:
        """The largest ``value`` of any process, 0 between two looks: all must stop, and save, at the same step."""
        if self.accelerator.num_processes > 1 and self.state.step % _POLL:
            return 0
        return reduce_max(value, self.accelerator)

    def _go_back(self, loss: float, indices: list[int]) -> None:
        """Go to the last saved state, and leave out what came since then.

        Raises:
            TrainingError: that happened too often.
        """
        names = ", ".join(self.job.data.name(index).name for index in indices)
        failed, position, rollbacks = self.state.step + 1, self.state.position, self.state.rollbacks
        if rollbacks == _ROLLBACKS:
            raise TrainingError(
                f"the loss became {loss} at step {failed} (images {names}) for the {_ROLLBACKS + 1}th time: "
                "lower lr, or use precision fp32"
            )
        self.state = state = self._load()
        state.rollbacks, state.skipped = rollbacks + 1, position + 1 - state.step
        self.progress.note(
            f"the loss became {loss} at step {failed}: back to step {state.step}, "
            f"without the batches since then (the last one: {names})"
        )

    def _end_epoch(self, interrupted: Callable[[], int]) -> None:
        """Log, evaluate where it is due, and save. A run that is stopped within goes on here."""
        state, config, folder = self.state, self.config, self.folder
        self._merge_bad()
        epoch = state.step // self.loader.per_epoch
        line = {
            "epoch": epoch,
            "step": state.step,
            "loss": state.total / self.loader.per_epoch,
            **({"bad": len(state.bad)} if state.bad else {}),
            "lr": self.stepper.lr,
            "seconds": state.seconds,
        }
        last = epoch == config.epochs
        if last or epoch % config.eval_every == 0:
            if self.job.validation:
                self.save()  # it may take long, or fail
            line |= self._evaluate(line, last, interrupted)
        state.losses.append(line["loss"])
        state.total = 0.0
        folder.log_epoch(line, config)
        if last and folder.writes:
            draw_curves(folder.lines(), folder.path / "curves.png", state.best_metric)
        self.save()

    def _evaluate(self, line: dict[str, Any], last: bool, interrupted: Callable[[], int]) -> dict[str, Any]:
        """Score the averaged weights and write them; returns the figures.

        Raises:
            SystemExit: a signal came meanwhile.
            DataError: no validation image can be scored.
        """
        state, config, job = self.state, self.config, self.job
        averaged = self.stepper.averaged.model(self.accelerator.device)
        if last and config.bn_batches:
            batches = itertools.islice(self.loader.batches(state.position), config.bn_batches)
            seeing = averaged.image_encoder if isinstance(averaged, PromptModel) else averaged
            estimate_norms(seeing, (image for _, image, _ in batches))
        figures: dict[str, Any] = {}
        better = True
        if job.validation:
            scores = score(averaged, self.info, job, self.accelerator, config.sync_bn, self.progress, interrupted)
            if signal_number := reduce_max(interrupted(), self.accelerator):
                self.progress.note(f"stopped while evaluating; resume with --resume --out {self.folder.path}")
                raise SystemExit(128 + signal_number)
            assert scores is not None
            figures = scores.to_dict()
            state.best_metric, value = scores.headline
            figure = in_words(state.best_metric, value)
            self.progress.note(f"epoch {line['epoch']}: loss {line['loss']:.4f}, {config.val_split} {figure}")
            better = not value < state.best  # also where it is NaN: some checkpoint must be there
            state.best = max(state.best, value)
        # A path of this machine means nothing elsewhere.
        paths = {name: Path(getattr(config, name)).name for name in ("weights", "class_map", "teacher", "embeddings")}
        settings = to_dict(config) | paths
        notes = {"config": settings, "images": len(job.data), "log": line | figures}
        self.folder.save_weights(averaged.state_dict(), self.info.replace(notes=notes), better)
        return figures


def _digest(job: Job) -> str:
    """Of the names of the classes and of the training images."""
    found = hashlib.sha256("\n".join(job.labels.names).encode())
    for index in range(len(job.data)):
        found.update(f"\n{job.data.name(index).name}".encode("utf-8", "surrogateescape"))
    return found.hexdigest()


def _settings(config: TrainConfig | str | Path | None, overrides: dict[str, Any]) -> TrainConfig:
    if isinstance(config, str | Path):
        return build_config(TrainConfig, read_yaml(config) | overrides, str(config))
    return build_config(TrainConfig, (to_dict(config) if config else {}) | overrides)
