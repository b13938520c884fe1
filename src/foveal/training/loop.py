"""The training loop of a run: steps, epochs, evaluations, saves, and what happens after a bad loss or a signal."""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..config import to_dict
from ..errors import CheckpointError, ConfigError, DataError, FovealError, InputError, TrainingError
from ..evaluation.metrics import in_words
from ..info import info_of
from ..layers.sync_norm import ONE_VALUE
from ..progress import Bar, Progress
from ..task import TASKS
from .batches import Loader, batches_per_pass
from .config import TrainConfig, portable_settings
from .distributed import gather_dict, reduce_max
from .folder import NEW_PHASE, RunFolder
from .initial import create_initial_model, notes_on_start
from .job import Job, Scores, describe_model
from .run_state import RunState
from .settings import resumable_settings
from .step import Stepper
from .trackers import Trackers
from .tuning import begin_tuning
from .validate import estimate_norms, evaluate_model

_AGREEMENT_STEPS = 10  # steps between agreement checks of the processes, each of which waits for the device
_ROLLBACKS = 3  # largest number of returns to a saved state after a loss that is not finite

Interrupted = Callable[[], int]  #: returns the number of the latest signal, 0 before the first one


class Run:
    """A training run in memory.

    Args:
        config: settings.
        job: the task's part.
        root: folder of the data set; ``bad.txt`` has paths relative to it.
        accelerator: the processes.
        folder: where the run is saved.
        progress: display.
    """

    def __init__(
        self, config: TrainConfig, job: Job, root: Path, accelerator: Accelerator, folder: RunFolder, progress: Progress
    ) -> None:
        self.config, self.job, self.root, self.accelerator = config, job, root, accelerator
        self.folder, self.progress = folder, progress
        dtype = torch.float64 if config.precision == "fp64" else torch.float32
        self.loader = Loader(job, config, accelerator, dtype, progress)
        self.steps = config.epochs * self.loader.per_epoch
        model, loaded = create_initial_model(config, job)
        self.tuning = begin_tuning(model, config, loaded)
        self.stepper = Stepper(model.to(dtype), config, job, self.steps, accelerator, progress)
        kept = {id(norm) for norm in self.stepper.frozen}
        self.frozen = [name for name, module in model.named_modules() if id(module) in kept]
        self.info = describe_model(model, job)
        self.start_notes = notes_on_start(config, job, loaded, info_of(model))
        self.start_notes += [self.tuning.begin(self.stepper.frozen)] if self.tuning else []
        self.state = RunState(len(job.data), _digest(job))
        self.saved_at = time.monotonic()
        self.weights_step = 0  # of the latest last.safetensors

    # ---- start, resume, save

    def start(self) -> None:
        """Write the settings and the first state to the folder."""
        self.progress.note(
            f"{self.state.images} training images, {self.loader.per_epoch} steps per epoch, {self.steps} in all"
        )
        for note in self.start_notes:
            self.progress.note(note)
        self.folder.write_config(self.config)
        if self.tuning:
            self.tuning.note_base(self.folder)
        self.save()

    def resume(self, changes: Mapping[str, Any] | None = None) -> None:
        """Continue from the state in the folder, in a new phase if there are ``changes`` of settings.

        Raises:
            ConfigError: the state belongs to another data set, or the run has as many epochs already.
            CheckpointError: the state cannot be read.
        """
        self.folder.clear_leftovers()
        state = self.folder.load_state(self.stepper.parts, self._check_data)
        self.state, self.weights_step = state, state.step
        self._begin_phase(changes) if changes else self._check_phase()
        self._place(state)
        self.stepper.pieces = state.parts
        for index, reason in state.bad.items():
            with suppress(DataError, InputError):  # the image may have been repaired
                self.job.data[index]
                continue
            self.loader.bad[index] = DataError(reason)
        self._merge_bad()
        self.progress.note(f"resuming after step {state.step} of {self.steps}")
        if changes:
            self._record_phase(changes)

    def _check_data(self, state: RunState) -> None:
        """Refuse a state of another data set: with another number of classes, its tensors would not fit, either."""
        if state.images != self.state.images:
            raise ConfigError(
                f"{self.folder.path} was trained on {state.images} images, this data set has {self.state.images}: "
                "resume with the data set of the run"
            )
        if state.data and state.data != self.state.data:
            raise ConfigError(
                f"{self.folder.path} was trained on images or classes of other names: resume with the data set of the "
                "run"
            )

    def _begin_phase(self, changes: Mapping[str, Any]) -> None:
        """Let a new phase begin at the state: with the next pass over the data and a new rise of the learning rate."""
        state, config, before = self.state, self.config, self.folder.read_config()
        if config.epochs <= len(state.losses):
            raise ConfigError(f"epochs={config.epochs}: {self.folder.path} has {len(state.losses)} epochs; give more")
        state.begin_phase(changes, -(-state.position // batches_per_pass(state.images, before)))
        self.stepper.begin_phase((config.epochs - state.phase_epochs) * self.loader.per_epoch)

    def _record_phase(self, changes: Mapping[str, Any]) -> None:
        """Write the new phase to the folder. The state comes first: it says which settings it is for."""
        before, phase = to_dict(self.folder.read_config()), self.state.phase
        words = ", ".join(f"{name} {before[name]} -> {value}" for name, value in changes.items())
        self.progress.note(f"phase {phase}: {words}; the learning rate rises and falls anew")
        self.folder.keep_config(phase - 1)
        self.save()
        self.folder.write_config(self.config)
        self.folder.log({"step": self.state.step, "phase": phase, "settings": dict(changes)})

    def _check_phase(self) -> None:
        """Refuse other settings than those of the phase: a new phase was stopped before its settings were written."""
        now, begun, free = to_dict(self.config), self.state.settings, resumable_settings(self.config)
        if wrong := [name for name, value in begun.items() if name not in free and now[name] != value]:
            raise ConfigError(
                f"{self.folder.path} is in phase {self.state.phase} with another {', '.join(wrong)}: begin the phase "
                f"again with the same options ({NEW_PHASE})"
            )

    def _place(self, state: RunState) -> None:
        """Set the number of steps and the passes over the data by the phase of a state, and cut the log.

        Raises:
            CheckpointError: the state is after the last step.
        """
        self.stepper.steps = (self.config.epochs - state.phase_epochs) * self.loader.per_epoch
        self.steps, self.loader.first_pass = state.phase_step + self.stepper.steps, state.phase_passes
        if state.step > self.steps:
            raise CheckpointError(
                f"{self.folder.state}: step {state.step} is after the last one, {self.steps}: resume with the settings "
                "of the run"
            )
        if damaged := self.folder.cut_log(state.step, len(state.losses)):
            self.progress.note(f"{self.folder.log_file}: damaged lines dropped: {damaged}")

    def save(self, weights: bool = True) -> None:
        """Write the weights, unless they are written already, and the state; every process must call this."""
        self.state.parts = self.stepper.pieces
        self._merge_bad()
        if weights:
            self._save_weights(self.stepper.averaged.weights(), {"step": self.state.step})
        self.folder.save_state(self.stepper.parts, self.state)
        self.saved_at = time.monotonic()

    def _save_weights(self, weights: Mapping[str, Tensor], log: Mapping[str, Any], best: bool = False) -> None:
        notes = {"config": portable_settings(self.config), "images": len(self.job.data), "log": log}
        info = self.info.replace(notes=notes)
        self.folder.save_weights(*(self.tuning.pack(weights, info) if self.tuning else (weights, info)), best)
        self.weights_step = self.state.step

    def _rescue_weights(self) -> None:
        """After a failure, write the weights of the last step, if no other process is needed for that."""
        if not self.config.fsdp and self.state.step != self.weights_step:
            with suppress(FovealError):  # the failure itself may be a full disk
                self._save_weights(self.stepper.averaged.weights(), {"step": self.state.step})

    def _merge_bad(self) -> None:
        """Exchange the bad images of all processes, and list them in the folder."""
        self.loader.note_bad(gather_dict(self.loader.bad, self.accelerator))
        before, self.state.bad = self.state.bad, {index: str(error) for index, error in self.loader.bad.items()}
        if self.state.bad.keys() != before.keys():
            paths = (self.job.data.name(index) for index in self.state.bad)
            relative = (path.relative_to(self.root) if path.is_relative_to(self.root) else path for path in paths)
            self.folder.write_bad({path.as_posix() for path in relative})

    # ---- steps

    def go(self, interrupted: Interrupted) -> None:
        """Train to the end of the run.

        Raises:
            SystemExit: a signal came; the state is saved.
            TrainingError: see :func:`foveal.train`.
        """
        self.batches = self.loader.batches(self.state.position)
        self.trackers = Trackers(self.folder.path, self.config, self.progress.note, self.folder.writes)
        try:
            with self.progress.bar("train", self.steps, self.state.step) as bar:
                self._go(interrupted, bar)
        except BaseException as error:
            try:
                self._rescue_weights()
            except RuntimeError as interruption:  # torch reports a dead worker while the weights are written
                if self.loader.worker_death(interruption) is None:
                    raise
                self._rescue_weights()
            if (cause := self._cause_of(error)) is not None:
                raise cause from error
            raise
        finally:
            self.trackers.close()
            self.batches.close()

    def _cause_of(self, error: BaseException) -> TrainingError | None:
        """Return the error to raise instead of one of torch's, which does not say what to do."""
        if isinstance(error, RuntimeError):
            return self.loader.worker_death(error)
        if isinstance(error, ValueError) and ONE_VALUE in str(error):
            pieces = f" in {self.stepper.pieces} pieces" if self.stepper.pieces > 1 else ""
            return TrainingError(
                f"batch norms need more than one value per channel, and a batch of {self.config.batch_size}{pieces} "
                "gives one on the coarsest feature map: raise batch_size or crop, lower accumulate, or set freeze_bn "
                "without bn_batches"
            )
        return None

    def _go(self, interrupted: Interrupted, bar: Bar) -> None:
        start_time = time.monotonic() - self.state.seconds
        while True:
            if self.state.epochs(self.loader.per_epoch) > len(self.state.losses):
                self._end_epoch(interrupted)
            if self.state.step == self.steps or self._out_of_patience():
                break
            indices, image, target = next(self.batches)
            self.loader.check_bad()
            loss = self.stepper(image, target, self.state.step + self.state.skipped)
            if not math.isfinite(loss):
                self._roll_back(loss, indices)
                self.batches = self.loader.batches(self.state.position)
                continue
            self.state.seconds = time.monotonic() - start_time
            self._count_step(loss, bar)
            self._stop_or_save(interrupted)

    def _count_step(self, loss: float, bar: Bar) -> None:
        state, config = self.state, self.config
        state.step += 1
        state.total += loss
        epoch = state.phase_epochs - (state.phase_step - state.step) // self.loader.per_epoch
        bar.advance(f"epoch {epoch}/{config.epochs} loss {loss:.3f}")
        if config.log_every and state.step % config.log_every == 0:
            self.folder.log({"step": state.step, "loss": loss, "lr": self.stepper.lr})

    def _stop_or_save(self, interrupted: Interrupted) -> None:
        """After a signal to any process, save and stop; otherwise save if it is time.

        Raises:
            SystemExit: a signal came.
        """
        if signal_number := self._agree(interrupted()):
            self.save()
            self.accelerator.wait_for_everyone()  # when one process has ended, torchrun soon kills the others
            self._stop(signal_number, f"stopped after step {self.state.step}")
        if self._agree(time.monotonic() - self.saved_at > 60 * self.config.save_minutes):
            self.save()

    def _stop(self, signal_number: int, reason: str) -> NoReturn:
        self.progress.note(f"{reason}; resume with --resume --out {self.folder.path}")
        raise SystemExit(128 + signal_number)

    def _agree(self, value: int) -> int:
        """Return the largest ``value`` of any process, or 0 between two agreement checks.

        All processes must stop, and save, at the same step.
        """
        if self.accelerator.num_processes > 1 and self.state.step % _AGREEMENT_STEPS:
            return 0
        return reduce_max(value, self.accelerator)

    def _roll_back(self, loss: float, indices: list[int]) -> None:
        """Return to the last saved state, and leave out the batches since then.

        Raises:
            TrainingError: that happened too often.
        """
        names = ", ".join(self.job.data.name(index).name for index in indices)
        failed, position, rollbacks = self.state.step + 1, self.state.position, self.state.rollbacks
        self.state = state = self.folder.load_state(self.stepper.parts)
        self._place(state)
        if rollbacks == _ROLLBACKS:
            raise TrainingError(
                f"the loss or its gradient became {loss} at step {failed} (images {names}) for the "
                f"{_ROLLBACKS + 1}th time: lower lr, or use precision fp32"
            )
        state.rollbacks, state.skipped = rollbacks + 1, position + 1 - (state.step - state.phase_step)
        self.progress.note(
            f"the loss or its gradient became {loss} at step {failed}: back to step {state.step}, "
            f"without the batches since then (the last one: {names})"
        )

    # ---- epochs

    def _end_epoch(self, interrupted: Interrupted) -> None:
        """Evaluate if it is due, log and save. A run that is stopped meanwhile resumes here."""
        state, config = self.state, self.config
        self._merge_bad()
        epoch = state.epochs(self.loader.per_epoch)
        line = {
            "epoch": epoch,
            "step": state.step,
            "loss": state.total / self.loader.per_epoch,
            **({"bad": len(state.bad)} if state.bad else {}),
            "lr": self.stepper.lr,
            "seconds": state.seconds,
        }
        last = epoch == config.epochs
        evaluates = last or epoch % config.eval_every == 0
        if evaluates:
            if self.job.validation:
                self.save()  # because the evaluation may take long, or fail
            line |= self._evaluate(line, last, interrupted)
            if self._out_of_patience() and not last:
                line |= self._end_early(line, interrupted)
        state.losses.append(line["loss"])
        state.total = 0.0
        self.folder.log_epoch(line, config)
        self.trackers.write(line)
        self.save(weights=not evaluates)

    def _out_of_patience(self) -> bool:
        return 0 < self.config.patience <= self.state.stale

    def _end_early(self, line: dict[str, Any], interrupted: Interrupted) -> dict[str, Any]:
        """Report that the patience is exhausted, and estimate the norms' statistics as after the last epoch."""
        self.progress.note(
            f"stopping after epoch {line['epoch']}: {self.state.best_metric} has not improved for {self.state.stale} "
            "evaluations (patience)"
        )
        stale = self.state.stale
        figures = self._evaluate(line, True, interrupted) if self.config.bn_batches else {}
        self.state.stale = stale  # the run ends, whatever the estimated statistics change
        return figures | {"stopped": "patience"}

    def _evaluate(self, line: dict[str, Any], last: bool, interrupted: Interrupted) -> dict[str, Any]:
        """Score the averaged weights, save them, and return the figures.

        Raises:
            SystemExit: a signal came meanwhile.
            DataError: no validation image can be scored.
        """
        averaged = self.stepper.averaged.model(self.accelerator.device)
        if last and self.config.bn_batches:
            batches = itertools.islice(self.loader.batches(self.state.position, one_size=True), self.config.bn_batches)
            frozen = [averaged.get_submodule(name) for name in self.frozen]
            estimate_norms(self.job.image_network(averaged), (image for _, image, _ in batches), frozen)
        figures: dict[str, Any] = {}
        best = True
        if self.job.validation:
            scores, only_class = self._score(averaged, interrupted)
            figures, best = scores.to_dict(), self.state.note_scores(scores)
            figure = in_words(*scores.headline)
            if math.isnan(scores.headline[1]):
                figure = f"cannot be scored ({scores.headline[0]}): its images have nothing to compare with"
            self.progress.note(f"epoch {line['epoch']}: loss {line['loss']:.4f}, {self.config.val_split} {figure}")
            if only_class:
                figures["only_class"] = only_class
                settings = "lr, backbone_lr_scale or class_weights"
                if not TASKS[self.config.task].labels_pixels:
                    settings = "lr or backbone_lr_scale"
                self.progress.note(
                    f"practically all predictions on {self.config.val_split} are {only_class!r}: the other classes are "
                    f"not learnt yet; if that stays, change {settings}"
                )
        self._save_weights(averaged.state_dict(), line | figures, best)
        return figures

    def _score(self, model: nn.Module, interrupted: Interrupted) -> tuple[Scores, str]:
        found = evaluate_model(
            model, self.info, self.job, self.accelerator, self.config.sync_bn, self.progress, interrupted
        )
        if signal_number := reduce_max(interrupted(), self.accelerator):
            self._stop(signal_number, "stopped while evaluating")
        assert found is not None
        return found


def _digest(job: Job) -> str:
    """Digest of the names of the classes and of the training images."""
    digest = hashlib.sha256("\n".join(job.labels.names).encode())
    for index in range(len(job.data)):
        digest.update(f"\n{job.data.name(index).name}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
