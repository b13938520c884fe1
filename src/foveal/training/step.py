"""One step of training: loss, gradients and update, in pieces and over processes as if the batch were one."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..errors import TrainingError
from ..layers.recompute import recompute
from ..layers.sync_norm import batch_norms, synchronise_norms
from ..models.registry import Backbone
from ..progress import Progress
from .config import TrainConfig
from .distributed import blocks_of, reduce_sum, shard
from .ema import Averaged, meta_copy
from .job import Job
from .schedule import learning_rate, parameter_groups


class Stepper:
    """The model in training with everything that a step changes.

    Args:
        model: what the run is about, in the type that it computes in; it is changed in place.
        steps: of the whole run.

    Attributes:
        averaged: the average of the model's weights.
        parts: what a run must save to go on, by name.
        pieces: how many pieces each process's batch is cut into: doubled when memory runs out.
    """

    def __init__(
        self, model: nn.Module, config: TrainConfig, job: Job, steps: int, accelerator: Accelerator, progress: Progress
    ) -> None:
        self.config, self.job, self.accelerator, self.progress = config, job, accelerator, progress
        self.pieces = config.accumulate
        trainee = job.trainee(model).to(next(model.parameters()).dtype)
        if accelerator.num_processes > 1 and config.sync_bn:
            trainee = synchronise_norms(trainee, accelerator.device)
        outline = meta_copy(model)  # before recomputation and shards: averaged models are plain ones
        blocks = blocks_of(model) if config.fsdp else list(cast(Backbone, model.backbone).stages)
        if config.grad_checkpointing:
            recompute(blocks)
        if config.fsdp:
            shard(trainee, blocks, accelerator.device)
            self.trainee = trainee
        else:
            self.trainee = accelerator.prepare(trainee.to(memory_format=torch.channels_last))  # pyright: ignore[reportCallIssue]
        optimizer = torch.optim.AdamW(parameter_groups(trainee, config.weight_decay), lr=config.lr)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate(step, steps, config.warmup)
        )
        self.optimizer = accelerator.prepare(optimizer)
        self.averaged = Averaged(model, outline, config.ema_decay)
        self.parts: dict[str, Any] = {
            "model": trainee,
            "ema": self.averaged,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
        }
        if accelerator.scaler is not None:
            self.parts["scaler"] = accelerator.scaler

    @property
    def lr(self) -> float:
        return float(self.schedule.get_last_lr()[0])

    def __call__(self, image: Tensor, target: Tensor, position: int) -> float:
        """Take one step and return the loss; nothing changes where that is not finite.

        Args:
            image: this process's share of the batch, ``(B, 3, H, W)``.
            target: what the job's loss takes.
            position: of the batch in the run, from which the model's random draws follow.

        Raises:
            TrainingError: memory does not suffice for one image, or, with several processes, for the batch.
        """
        self.trainee.train()
        if self.config.freeze_bn:
            for norm in batch_norms(self.trainee):
                norm.eval()
        while True:
            try:
                return self._attempt(image, target, position)
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
                self.optimizer.zero_grad(set_to_none=True)
                if self.pieces >= len(image) or self.accelerator.num_processes > 1:
                    raise TrainingError(
                        f"out of memory with {-(-len(image) // self.pieces)} images of "
                        f"{image.shape[-2]}x{image.shape[-1]} (H x W) at a time: raise accumulate or lower crop"
                    ) from error
                self.pieces *= 2
                self.progress.note(f"out of memory: going on with batches in {self.pieces} pieces")
                if self.accelerator.device.type == "cuda":
                    torch.cuda.empty_cache()

    def _attempt(self, image: Tensor, target: Tensor, position: int) -> float:
        accelerator, world = self.accelerator, self.accelerator.num_processes
        torch.manual_seed(_seed(self.config.seed, position, accelerator.process_index))
        targets = target.chunk(self.pieces)
        weights = [self.job.weight(piece) for piece in targets]
        everything = reduce_sum(torch.stack(weights).sum(), accelerator).clamp(min=1e-6)
        total = torch.zeros((), device=image.device, dtype=image.dtype)
        for number, (x, y, weight) in enumerate(zip(image.chunk(self.pieces), targets, weights, strict=True), start=1):
            # Only the last piece's backward pass meets the others'; shards have no room for the pieces before.
            joint = world == 1 or self.config.fsdp or number == len(targets)
            with nullcontext() if joint else accelerator.no_sync(self.trainee):
                with accelerator.autocast():
                    loss = self.job.loss(self.trainee, x, y)
                if world > 1 or len(targets) > 1:
                    loss = loss * (weight / everything).to(loss.dtype)
                accelerator.backward(loss * world)  # gradients are averaged over processes
                total += loss.detach()
        value = reduce_sum(total, accelerator).item()
        if math.isfinite(value):
            if self.config.grad_clip:
                accelerator.clip_grad_norm_(self.trainee.parameters(), self.config.grad_clip)
            self.optimizer.step()
            self.schedule.step()
            self.averaged.update()
        self.optimizer.zero_grad(set_to_none=True)
        return value


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _out_of_memory(error: BaseException) -> bool:
    """torch has a type for accelerators alone; its CPU allocator and oneDNN only write it into the message."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(text in str(error) for text in ("can't allocate memory", "not enough memory", "std::bad_alloc"))
