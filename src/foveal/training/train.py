"""``train``: one loop on accelerate for every task, so that ``torchrun`` scales the same command.

Two runs with the same settings on the same machine give the same numbers, whether they were interrupted or not: the
order of the samples, their augmentation and the model's random draws depend on the seed and the step alone, and
``state.pt`` (see :mod:`foveal.training.folder`) holds everything else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..config import to_dict
from ..data.recognition import explain_wrong_layout
from ..data.shards import find_shards, is_pattern
from ..errors import ConfigError
from ..progress import Progress
from .batch_size import find_batch_size
from .config import TrainConfig, refuse_code, resolve_config
from .curves import draw_curves
from .distillation import DistillationJob
from .distributed import make_accelerator
from .folder import RunFolder
from .jobs import complete_config, make_job
from .lock import only_training
from .loop import Run
from .signals import interrupts
from .trackers import check_trackers


@dataclass(frozen=True)
class TrainResult:
    """The folder of a run and what the run reached.

    Attributes:
        folder: folder of the run.
        best: checkpoint with the highest validation figure; the last checkpoint if there is no validation split.
        metric: name of that figure, for example "miou" or "top1".
        value: that figure, NaN without a validation split.
        losses: mean training loss of each epoch.
        bad: training images that were replaced by others -> the reason; also listed in the folder's ``bad.txt``.
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
    new_phase: bool = False,
    **overrides: Any,
) -> TrainResult:
    """Train a model for the task that the settings name.

    SIGTERM and Ctrl-C save the state after the current step and end the process; ``resume`` continues from there.

    Args:
        data: folder of the data set (see :mod:`foveal.data`), or a pattern of tar files.
        config: settings as an object or a YAML file, whose paths are relative to its folder; default: those of the run
            when resuming, otherwise the defaults of :class:`~foveal.training.config.TrainConfig`.
        out: folder of the run.
        resume: continue the run in ``out`` from its last saved step.
        new_phase: with ``resume``, begin a new phase with other settings, for example more ``epochs`` or another
            ``batch_size``: from the weights and the optimiser's state of the last saved step, with the next pass over
            the data and a learning rate that rises and falls anew. ``config.yaml`` then has the new settings,
            ``config.1.yaml`` those of the first phase, and the log a line that says what changed.
        **overrides: fields of TrainConfig, for example ``epochs=50, device="cuda"``; they replace those of ``config``.

    Raises:
        ConfigError: a setting is unknown or impossible; ``out`` already has a run, or none to resume; another training
            uses ``out``.
        DataError: the data set cannot be used.
        CheckpointError: the state to resume from cannot be read.
        TrainingError: the loss stays NaN or infinite, memory does not suffice for one image, a worker process died.
    """
    folder = RunFolder(Path(out))
    if new_phase and not resume:
        raise ConfigError("a new phase needs a run to resume: give resume (--resume), too, or leave new_phase out")
    if resume and config is None and folder.config_file.exists():
        config = folder.read_config()
        refuse_code(to_dict(config), overrides, str(folder.config_file))
    config = complete_config(resolve_config(config, overrides), folder.path)
    if resume and not new_phase and folder.config_file.exists():
        config = _with_found_batch_size(config, folder.read_config())
    changes = folder.check_resumable(config, new_phase) if resume else folder.check_new()
    accelerator = make_accelerator(config)
    check_trackers(config)
    folder.writes = accelerator.is_main_process
    progress = Progress(enabled=accelerator.is_main_process)
    with only_training(folder.path, accelerator):
        torch.manual_seed(config.seed)
        root = find_shards(data)[0] if is_pattern(data) else Path(data)
        with explain_wrong_layout(data, config.task):
            job = make_job(data, config, progress)
        if config.auto_batch_size and not (resume and not new_phase):
            config = dataclasses.replace(config, batch_size=find_batch_size(config, job, accelerator, progress))
            changes = changes and {**changes, "batch_size": config.batch_size}
        run = Run(config, job, root, accelerator, folder, progress)
        if isinstance(job, DistillationJob):
            job.averaged = run.stepper.averaged
        run.resume(changes) if resume else run.start()
        with interrupts() as interrupted:
            run.go(interrupted)
        _draw_curves(folder, run.state.best_metric, progress)
        accelerator.wait_for_everyone()
    return _result(run)


def _with_found_batch_size(config: TrainConfig, before: TrainConfig) -> TrainConfig:
    """The settings of a run that is resumed, with the batch size that was found at its start, unless one was given."""
    if config.auto_batch_size:
        return dataclasses.replace(config, batch_size=before.batch_size)
    return dataclasses.replace(config, auto_batch_size=before.auto_batch_size)


def _draw_curves(folder: RunFolder, metric: str, progress: Progress) -> None:
    """Draw the learning curves. The run is saved already, so no error of the plot library may end it."""
    if not folder.writes:
        return
    try:
        draw_curves(folder.lines(), folder.curves, metric)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        progress.note(f"the run is complete, but {folder.curves.name} could not be drawn: {reason}")


def _result(run: Run) -> TrainResult:
    state, folder = run.state, run.folder
    bad = {str(run.job.data.name(index)): reason for index, reason in state.bad.items()}
    value = state.best_value if run.job.validation else float("nan")
    return TrainResult(folder.path, folder.best, state.best_metric, value, tuple(state.losses), bad)
