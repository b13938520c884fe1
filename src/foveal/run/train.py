"""Training: one loop on accelerate for every task, so that ``torchrun`` scales the same command.

Two runs of the same settings on the same machine give the same numbers, whether they were interrupted or not: the
order of the samples, their augmentation and the model's own draws depend on the seed and the step alone, and
``state.pt`` (see :mod:`foveal.run.folder`) holds the rest.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from ..config import TrainConfig, build_config, read_yaml, to_dict
from ..errors import ConfigError, FovealError, TrainingError
from ..factory import create_model
from ..info import info_of
from ..weights import save_checkpoint
from .batches import Batches, Samples, collated, deaf
from .curves import draw_curves
from .folder import RunFolder
from .jobs import JOBS, Job, Scores
from .metrics import in_words
from .predict import Predictor, TorchRunner
from .progress import Progress
from .recompute import recompute_stages
from .sync_norm import batch_norms, synchronised

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
    """

    folder: Path
    best: Path
    metric: str
    value: float
    losses: tuple[float, ...]


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
        data: folder of the data set (see :mod:`foveal.data`).
        config: recipe, as an object or a YAML file; default: the run's own when resuming, else
            :class:`~foveal.config.TrainConfig`'s defaults.
        out: folder of the run.
        resume: go on from ``out``'s last saved step.
        **overrides: fields of TrainConfig that replace the recipe's.

    Raises:
        ConfigError: unknown or impossible setting; ``out`` holds a run already; nothing to resume.
        DataError: the data set cannot be used.
        TrainingError: the loss stays NaN or infinite, memory does not suffice for one image, a loading process died.
    """
    out = Path(out)
    if resume and config is None and (out / "config.yaml").exists():
        config = out / "config.yaml"
    config = _settings(config, overrides)
    folder = RunFolder(out)
    folder.check_resumable(config) if resume else folder.check_new()
    # On a machine without an accelerator, cpu=True is what makes torchrun's processes one group (gloo).
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision=config.precision if config.precision in ("bf16", "fp16") else "no",
    )
    folder.writes = accelerator.is_main_process
    progress = Progress(enabled=accelerator.is_main_process)
    torch.manual_seed(config.seed)
    job = JOBS[config.task](data, config, progress)
    run = _Run(config, job, accelerator, folder, progress)
    if resume:
        run.resume()
    else:
        folder.write_config(config)
        run.save()
    with _interrupts() as interrupted:
        run.go(interrupted)
    accelerator.wait_for_everyone()
    metric, value = run.state.best_metric, run.state.best if job.validation else float("nan")
    return TrainResult(out, folder.best, metric, value, tuple(run.state.losses))


@dataclass
class _State:
    """Where a run stands, in plain values.

    Attributes:
        step: optimiser steps done.
        skipped: batches of data that were left out after a loss that was not finite.
        rollbacks: how often that happened.
        total: sum of the losses of this epoch so far.
        losses: mean loss of each whole epoch.
        best: highest validation figure so far.
        best_metric: its name.
        seconds: time spent training.
        parts: pieces that each process's batch is cut into: doubled when memory runs out.
        images: training images, to tell another data set.
    """

    images: int
    parts: int = 1
    step: int = 0
    skipped: int = 0
    rollbacks: int = 0
    total: float = 0.0
    losses: list[float] = field(default_factory=list)
    best: float = -1.0
    best_metric: str = ""
    seconds: float = 0.0


class _Run:
    """A training run in memory."""

    def __init__(
        self, config: TrainConfig, job: Job, accelerator: Accelerator, folder: RunFolder, progress: Progress
    ) -> None:
        self.config, self.job, self.accelerator = config, job, accelerator
        self.folder, self.progress = folder, progress
        processes = accelerator.num_processes
        self.per_epoch = len(job.files) // config.batch_size
        if not self.per_epoch:
            raise ConfigError(f"batch_size={config.batch_size} is above the {len(job.files)} training images")
        if config.batch_size % processes:
            raise ConfigError(f"batch_size={config.batch_size} does not divide by {processes} processes")
        self.steps = config.epochs * self.per_epoch
        self.model = create_model(
            config.model,
            config.task,
            num_classes=len(job.labels.names),
            weights=config.weights or None,
            **config.options,
        )
        self.info = info_of(self.model).replace(labels=job.labels, preprocess=job.preprocess, tag="")
        trainee = job.trainee(self.model)
        if processes > 1 and config.sync_bn:
            trainee = synchronised(trainee, accelerator.device)
        self.dtype = torch.float64 if config.precision == "fp64" else torch.float32
        trainee = trainee.to(self.dtype).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.ema = AveragedModel(self.model, multi_avg_fn=_ema(config.ema_decay), use_buffers=True)
        self.ema = self.ema.to(accelerator.device)
        self.optimizer = torch.optim.AdamW(_parameter_groups(trainee, config.weight_decay), lr=config.lr)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate(step, self.steps, config.warmup)
        )
        if config.grad_checkpointing:  # after the copy: the averaged model must not run these stages
            recompute_stages(self.model)
        self.trainee, self.optimizer = accelerator.prepare(trainee, self.optimizer)
        self.state = _State(len(job.files), parts=config.accumulate)
        self.saved = {"model": trainee, "ema": self.ema, "optimizer": self.optimizer, "schedule": self.schedule}
        if accelerator.scaler is not None:
            self.saved["scaler"] = accelerator.scaler
        self.saved_at = time.monotonic()
        self.awaited: list[int] = []  # images of the batch that was asked for last

    def go(self, interrupted: Callable[[], int]) -> None:
        """Train to the end, or until ``interrupted()`` names a signal.

        Raises:
            TrainingError: see :func:`train`.
        """
        try:
            self._go(interrupted)
        except RuntimeError as error:  # raised by torch's handler of SIGCHLD, wherever the loop is just then
            if "DataLoader worker" not in str(error):
                raise
            names = ", ".join(str(self.job.files[index]) for index in self.awaited)
            raise TrainingError(
                f"a data loading process died, probably for want of memory, at or after: {names}; "
                "resume with fewer workers"
            ) from error

    def _go(self, interrupted: Callable[[], int]) -> None:
        config = self.config
        started = time.monotonic() - self.state.seconds
        stream = self._batches()
        with self.progress.bar("train", self.steps, self.state.step) as bar:
            while self.state.step < self.steps:
                self._train_mode()
                indices, image, target = next(stream)
                loss = self._step(image, target)
                if not self._finite(loss, indices):
                    stream = self._batches()
                    continue
                state = self.state
                state.step += 1
                state.total += loss
                state.seconds = time.monotonic() - started
                epoch = -(-state.step // self.per_epoch)
                bar.advance(f"epoch {epoch}/{config.epochs} loss {loss:.3f}")
                if config.log_every and state.step % config.log_every == 0:
                    self.folder.log({"step": state.step, "loss": loss, "lr": self.schedule.get_last_lr()[0]})
                if state.step % self.per_epoch == 0:
                    self._end_epoch(epoch)
                signal_number = self._agreed(interrupted)
                if signal_number:
                    self.save()
                    self.progress.note(
                        f"stopped after step {state.step}; resume with --resume --out {self.folder.path}"
                    )
                    raise SystemExit(128 + signal_number)
                if time.monotonic() - self.saved_at > 60 * config.save_minutes:
                    self.save()

    def _train_mode(self) -> None:
        self.trainee.train()
        if self.config.freeze_bn:
            for norm in batch_norms(self.trainee):
                norm.eval()

    def save(self) -> None:
        self.folder.save_state(self.saved, vars(self.state))
        self.saved_at = time.monotonic()

    def resume(self) -> None:
        """Go to where the folder's state stands.

        Raises:
            ConfigError: the state is of another data set.
            CheckpointError: the state cannot be read.
        """
        found = _State(**self.folder.load_state(self.saved))
        if found.images != self.state.images:
            raise ConfigError(
                f"{self.folder.path} was trained on {found.images} images, this data set has {self.state.images}"
            )
        self.state = found
        self.folder.cut_log(found.step)
        self.progress.note(f"resuming after step {found.step} of {self.steps}")

    def _batches(self) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Indices, images and targets of this process's batches, from the run's position on."""
        config, accelerator = self.config, self.accelerator
        order = Batches(
            len(self.job.files),
            config.batch_size,
            config.seed,
            self.state.step + self.state.skipped,
            accelerator.process_index,
            accelerator.num_processes,
        )
        loader = DataLoader(
            Samples(self.job, config.seed),
            batch_sampler=order,
            num_workers=config.workers,
            collate_fn=collated,
            worker_init_fn=deaf,
            pin_memory=accelerator.device.type == "cuda",
        )
        places, stream = iter(order), iter(loader)
        for place in places:
            self.awaited = [index for _, index in place]
            batch = next(stream)
            if isinstance(batch, FovealError):
                raise batch
            image, target = (part.to(accelerator.device, non_blocking=True) for part in batch)
            yield self.awaited, image.to(self.dtype).contiguous(memory_format=torch.channels_last), target

    def _step(self, image: Tensor, target: Tensor) -> float:
        """One optimiser step, where the loss is finite; in smaller pieces where memory does not suffice."""
        while True:
            try:
                return self._attempt(image, target)
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
                self.optimizer.zero_grad(set_to_none=True)
                if self.state.parts >= len(image) or self.accelerator.num_processes > 1:
                    raise TrainingError(
                        f"out of memory with {-(-len(image) // self.state.parts)} images of "
                        f"{image.shape[-2]}x{image.shape[-1]} (H x W) at a time: raise accumulate or lower crop"
                    ) from error
                self.state.parts *= 2
                self.progress.note(f"out of memory: going on with batches in {self.state.parts} pieces")
                if self.accelerator.device.type == "cuda":
                    torch.cuda.empty_cache()

    def _attempt(self, image: Tensor, target: Tensor) -> float:
        accelerator, world = self.accelerator, self.accelerator.num_processes
        position = self.state.step + self.state.skipped
        torch.manual_seed(_seed(self.config.seed, position, accelerator.process_index))
        targets = target.chunk(self.state.parts)
        weights = [self.job.weight(piece) for piece in targets]
        whole = self._summed(torch.stack(weights).sum()).clamp(min=1e-6)
        total = torch.zeros((), device=image.device, dtype=image.dtype)
        for number, (x, y, weight) in enumerate(
            zip(image.chunk(self.state.parts), targets, weights, strict=True), start=1
        ):
            joint = world == 1 or number == len(targets)  # only the last piece's backward pass meets the others'
            with nullcontext() if joint else accelerator.no_sync(self.trainee):
                with accelerator.autocast():
                    loss = self.job.loss(self.trainee, x, y)
                if world > 1 or len(targets) > 1:
                    loss = loss * (weight / whole).to(loss.dtype)
                accelerator.backward(loss * world)  # gradients are averaged over processes
                total += loss.detach()
        value = self._summed(total).item()
        if math.isfinite(value):
            if self.config.grad_clip:
                accelerator.clip_grad_norm_(self.trainee.parameters(), self.config.grad_clip)
            self.optimizer.step()
            self.schedule.step()
            self.ema.update_parameters(self.model)
        self.optimizer.zero_grad(set_to_none=True)
        return value

    def _finite(self, loss: float, indices: list[int]) -> bool:
        """Whether ``loss`` is; if not, go back to the last saved state and leave the batch out."""
        if math.isfinite(loss):
            return True
        state, names = self.state, ", ".join(self.job.files[index].name for index in indices)
        failed, position = state.step + 1, state.step + state.skipped
        if state.rollbacks == _ROLLBACKS:
            raise TrainingError(
                f"the loss became {loss} at step {failed} (images {names}) for the {_ROLLBACKS + 1}th time: "
                "lower lr, or use precision fp32"
            )
        parts, rollbacks = state.parts, state.rollbacks + 1
        self.state = state = _State(**self.folder.load_state(self.saved))
        state.parts, state.rollbacks, state.skipped = parts, rollbacks, position + 1 - state.step
        self.folder.cut_log(state.step)
        self.progress.note(
            f"the loss became {loss} at step {failed}: back to step {state.step}, "
            f"without the batches since then (the last one: {names})"
        )
        return False

    def _end_epoch(self, epoch: int) -> None:
        """Log, evaluate where it is due, and save."""
        state, config, folder = self.state, self.config, self.folder
        state.losses.append(state.total / self.per_epoch)
        state.total = 0.0
        line = {
            "epoch": epoch,
            "step": state.step,
            "loss": state.losses[-1],
            "lr": self.schedule.get_last_lr()[0],
            "seconds": state.seconds,
        }
        last = epoch == config.epochs
        if last or epoch % config.eval_every == 0:
            averaged = cast(nn.Module, self.ema.module) if config.ema_decay else self.model
            if last and config.bn_batches:
                self._estimate_norms(averaged)
            scores = self._score(averaged) if self.job.validation else None
            better = True
            if scores:
                state.best_metric, value = scores.headline
                line |= scores.to_dict()
                self.progress.note(
                    f"epoch {epoch}: loss {line['loss']:.4f}, {config.val_split} {in_words(*scores.headline)}"
                )
                better = not value < state.best  # also where it is NaN: some checkpoint must be there
                state.best = max(state.best, value)
            if folder.writes:
                info = self.info.replace(notes=self._notes(line))
                for path in (folder.last, folder.best) if better else (folder.last,):
                    save_checkpoint(path, averaged.state_dict(), info)
        folder.log(line)
        if config.csv:
            folder.write_csv()
        if config.tensorboard and folder.writes:
            _tensorboard(folder.path, line)
        if last and folder.writes:
            draw_curves(folder.lines(), folder.path / "curves.png", state.best_metric)
        self.save()

    def _score(self, model: nn.Module) -> Scores:
        """Score ``model`` on the validation split, each image counted once over all processes."""
        accelerator, training = self.accelerator, model.training
        if accelerator.num_processes > 1 and not self.config.sync_bn:  # each process's norms counted its own share
            for buffer in model.buffers():
                broadcast(buffer)
        predictor = Predictor(TorchRunner(model, str(accelerator.device)), self.info, "torch")
        mine = range(accelerator.process_index, self.job.validation, accelerator.num_processes)
        counts = self._summed(torch.from_numpy(self.job.score(predictor, mine)).to(accelerator.device))
        model.train(training)
        return self.job.scores(counts.cpu().numpy())

    @torch.no_grad()
    def _estimate_norms(self, model: nn.Module) -> None:
        """Take the running statistics of ``model`` anew, as plain averages over ``bn_batches`` training batches.

        Averaged weights never ran with the statistics that were averaged beside them (arXiv 1803.05407, section 3.2).
        """
        norms = batch_norms(model)
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        for _, (_, image, _) in zip(range(self.config.bn_batches), self._batches(), strict=False):
            model(image)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()

    def _summed(self, value: Tensor) -> Tensor:
        """Sum over processes."""
        return cast(Tensor, self.accelerator.reduce(value, "sum")) if self.accelerator.num_processes > 1 else value

    def _agreed(self, interrupted: Callable[[], int]) -> int:
        """The signal that reached any of the processes, 0 if none: all must stop at the same step."""
        mine = interrupted()
        if self.accelerator.num_processes == 1:
            return mine
        if self.state.step % _POLL:
            return 0
        flag = torch.tensor(mine, device=self.accelerator.device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return int(flag)

    def _notes(self, line: dict[str, Any]) -> dict[str, Any]:
        # A path of this machine means nothing elsewhere.
        settings = to_dict(self.config) | {"weights": Path(self.config.weights).name}
        return {"config": settings, "images": len(self.job.files), "log": line}


def learning_rate(step: int, steps: int, warmup: float) -> float:
    """Share of the peak rate: linear rise over the first ``warmup`` of the steps, then a half cosine to 0."""
    rise = max(1, round(steps * warmup))
    if step < rise:
        return (step + 1) / rise
    return 0.5 + 0.5 * math.cos(math.pi * (step - rise) / max(1, steps - rise))


@contextmanager
def _interrupts() -> Iterator[Callable[[], int]]:
    """While inside, SIGTERM and SIGINT are only noted: the number of the last one, 0 before."""
    received = 0

    def note(number: int, frame: Any) -> None:
        nonlocal received
        received = number

    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0  # only the main thread may set handlers
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _settings(config: TrainConfig | str | Path | None, overrides: dict[str, Any]) -> TrainConfig:
    if isinstance(config, str | Path):
        return build_config(TrainConfig, read_yaml(config) | overrides, str(config))
    return build_config(TrainConfig, (to_dict(config) if config else {}) | overrides)


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights decay; norms and biases do not."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _out_of_memory(error: BaseException) -> bool:
    """torch has a type for accelerators alone; its CPU allocator and oneDNN only write it into the message."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(text in str(error) for text in ("can't allocate memory", "not enough memory", "std::bad_alloc"))


def _ema(decay: float) -> Any:
    """Update rule of the averaged weights; the decay rises from 0.1, so that the random start is soon forgotten."""

    @torch.no_grad()
    def update(averaged: Any, current: Any, count: Tensor | int) -> None:
        kept = min(decay, (1 + int(count)) / (10 + int(count)))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - kept)  # pyright: ignore[reportPrivateImportUsage]
        else:
            torch._foreach_copy_(averaged, current)  # pyright: ignore[reportPrivateImportUsage]

    return update


def _tensorboard(folder: Path, line: dict[str, Any]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard")) as writer:
        for key, value in line.items():
            if isinstance(value, int | float) and key not in ("epoch", "step"):
                writer.add_scalar(key, value, line["step"])
