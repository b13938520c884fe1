"""One training step: loss, gradients and update, in pieces and over processes as if the batch were in one place."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import math
import sys
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..errors import TrainingError, is_out_of_memory
from ..layers.recompute import recompute
from ..layers.sync_norm import batch_norms, synchronise_norms
from ..models.registry import Backbone
from ..progress import Progress
from .common_settings import CommonSettings
from .distributed import as_number, blocks_of, reduce_sum, shard
from .ema import Averaged, meta_copy
from .freezing import freeze, keep_statistics
from .job import Job
from .optimizers import OPTIMIZERS
from .parameter_groups import parameter_groups
from .schedules import learning_rate


class Stepper:
    """The model in training, with everything that a step changes.

    Args:
        model: the model in the number format in which it computes; it is changed in place.
        config: settings of the run.
        job: the task's part.
        steps: number of steps of the whole run.
        accelerator: the processes.
        progress: display.

    Attributes:
        averaged: the average of the model's weights.
        parts: what a run must save to be resumed, by name.
        frozen: batch norms that keep their statistics, see :func:`~foveal.training.freezing.freeze`.
        steps: number of steps over which the learning rate rises and falls.
        pieces: number of pieces into which each process's share of a batch is cut; doubled when memory runs out.
    """

    def __init__(
        self,
        model: nn.Module,
        config: CommonSettings,
        job: Job,
        steps: int,
        accelerator: Accelerator,
        progress: Progress,
    ) -> None:
        self.config, self.job, self.accelerator, self.progress = config, job, accelerator, progress
        self.pieces = config.accumulate
        trainee = job.trainee(model).to(next(model.parameters()).dtype)
        if accelerator.num_processes > 1 and config.sync_bn:
            trainee = synchronise_norms(trainee, accelerator.device)
        self.frozen = freeze(model, config.freeze)
        if config.tune:
            self.frozen = keep_statistics(model)
        outline = meta_copy(model)  # copied before recomputation and sharding, because averaged models have neither
        self.trainee = self._distribute(trainee, model)
        scale = config.backbone_lr_scale
        backbone_lr = None if scale is None or scale == 1 else scale * config.lr
        groups = parameter_groups(trainee, config.weight_decay, backbone_lr, config.lr, config.layer_decay)
        optimizer = OPTIMIZERS[config.optimizer].make(groups, config.lr, config.momentum)
        self.steps = steps
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate(step, self.steps, config.warmup, config.schedule)
        )
        self.optimizer = accelerator.prepare(optimizer)
        groups = [{key: value for key, value in g.items() if key != "params"} for g in self.optimizer.param_groups]
        self._fresh = (copy.deepcopy(self.schedule.state_dict()), groups)  # of a run that begins
        self.averaged = Averaged(model, outline, config.ema_decay)
        self.parts: dict[str, Any] = {
            "model": trainee,
            "ema": self.averaged,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
        }
        if accelerator.scaler is not None:
            self.parts["scaler"] = accelerator.scaler

    def _distribute(self, trainee: nn.Module, model: nn.Module) -> nn.Module:
        """Put the trainee on the device, with recomputation and over the processes as the settings say."""
        config, accelerator = self.config, self.accelerator
        blocks = blocks_of(model) if config.fsdp else list(cast(Backbone, model.backbone).stages)
        if config.grad_checkpointing:
            recompute(blocks)
        if config.fsdp:
            shard(trainee, blocks, accelerator.device)
            return trainee
        return accelerator.prepare(trainee.to(memory_format=torch.channels_last))  # pyright: ignore[reportCallIssue]

    def begin_phase(self, steps: int) -> None:
        """Let the learning rate rise and fall anew over ``steps`` steps, with the settings of the new phase.

        It is called after the parts were loaded: the moments of the optimiser are kept, its rates are not.
        """
        self.steps = steps
        self.schedule.load_state_dict(self._fresh[0])
        first = learning_rate(0, steps, self.config.warmup, self.config.schedule)
        for group, fresh, base in zip(self.optimizer.param_groups, self._fresh[1], self.schedule.base_lrs, strict=True):
            group.update({**fresh, "lr": base * first})

    @property
    def lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def __call__(self, image: Tensor, target: Tensor, position: int) -> float:
        """Take one step and return the loss.

        If the loss is not finite, or with ``grad_clip`` the gradient, no weight changes and the result is not finite.

        Args:
            image: this process's share of the batch, ``(B, 3, H, W)``.
            target: the targets, as the job's loss takes them.
            position: number of the batch in the run, from which the model's random draws are seeded.

        Raises:
            TrainingError: there is not enough memory for one image or, with several processes, for the batch.
        """
        self.trainee.train()
        for norm in batch_norms(self.trainee) if self.config.freeze_bn else self.frozen:
            norm.eval()
        while True:
            try:
                return self._attempt(image, target, position)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error)
            self._use_more_pieces(image, reason)

    def _use_more_pieces(self, image: Tensor, reason: str) -> None:
        """After running out of memory, double the number of pieces.

        The error itself must be gone: its traceback holds the activations of the failed attempt.

        Raises:
            TrainingError: a piece cannot be smaller, or there are several processes, which must take the same steps.
        """
        self.optimizer.zero_grad(set_to_none=True)
        if self.pieces >= len(image) or self.accelerator.num_processes > 1:
            raise TrainingError(
                f"out of memory with {-(-len(image) // self.pieces)} images of "
                f"{image.shape[-2]}x{image.shape[-1]} (H x W) at a time: raise accumulate or lower crop"
            ) from RuntimeError(reason)
        self.pieces *= 2
        self.progress.note(f"out of memory: going on with batches in {self.pieces} pieces")
        if self.accelerator.device.type == "cuda":
            torch.cuda.empty_cache()
        elif sys.platform == "linux":
            _return_large_blocks()

    def _attempt(self, image: Tensor, target: Tensor, position: int) -> float:
        accelerator = self.accelerator
        torch.manual_seed(_seed(self.config.seed, position, accelerator.process_index))
        loss = reduce_sum(self._accumulate_gradients(image, target), accelerator).item()
        if math.isfinite(loss) and self.config.grad_clip:
            norm = accelerator.clip_grad_norm_(self.trainee.parameters(), self.config.grad_clip)
            # The scaler of float16 leaves such steps out by itself.
            if norm is not None and accelerator.scaler is None and not math.isfinite(as_number(norm)):
                loss = math.nan
        if math.isfinite(loss):
            self.optimizer.step()
            self.schedule.step()
            self.averaged.update()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def _accumulate_gradients(self, image: Tensor, target: Tensor) -> Tensor:
        """Run the forward and backward passes of all pieces; return this process's part of the loss, a scalar."""
        accelerator, processes = self.accelerator, self.accelerator.num_processes
        targets = target.chunk(self.pieces)
        weights = [self.job.weight(piece) for piece in targets]
        all_weights = reduce_sum(torch.stack(weights).sum(), accelerator).clamp(min=1e-6)
        total = torch.zeros((), device=image.device, dtype=image.dtype)
        for number, (x, y, weight) in enumerate(zip(image.chunk(self.pieces), targets, weights, strict=True), start=1):
            # Synchronise gradients on the last piece only. With shards, after every piece: a process has no memory for
            # the unsharded gradients of earlier pieces.
            synchronise = processes == 1 or self.config.fsdp or number == len(targets)
            with contextlib.nullcontext() if synchronise else accelerator.no_sync(self.trainee):
                with accelerator.autocast():
                    loss = self.job.loss(self.trainee, x, y)
                if processes > 1 or len(targets) > 1:
                    loss = loss * (weight / all_weights).to(loss.dtype)
                accelerator.backward(loss * processes)  # because gradients are averaged over the processes
                total += loss.detach()
        return total


_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


def _return_large_blocks() -> None:
    """Let glibc return blocks of 1 MiB and more to the system when they are freed.

    By default it keeps blocks of up to 32 MiB once one was freed. After an attempt that failed they are scattered, and
    smaller pieces of the batch find no room between them.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 2**20)


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
