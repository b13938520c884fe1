"""Training: one linear loop on accelerate, so that ``torchrun`` scales the same command.

A run is a folder: ``config.yaml`` (all settings), ``log.jsonl`` (a line per epoch and evaluation),
``last.safetensors`` and ``best.safetensors`` (averaged weights with their description) and ``state.pt`` (everything
that ``resume`` needs). Every file but the log is written aside and renamed; the log grows line by line.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset, Sampler

from ..config import TrainConfig, build_config, read_yaml, to_dict
from ..data.segmentation import SegmentationData, class_counts, median_frequency_weights
from ..data.transforms import SegmentAugment
from ..errors import CheckpointError, ConfigError, DataError, TrainingError
from ..factory import create_model
from ..files import written_whole
from ..imaging import prepare
from ..info import ModelInfo, info_of
from ..losses import SegmentationLoss
from ..weights import save_checkpoint
from .metrics import SegmentScores, confusion_matrix
from .predict import Predictor, TorchRunner
from .progress import Progress


@dataclass(frozen=True)
class TrainResult:
    """Where a run is and what it reached.

    Attributes:
        folder: the run.
        best: checkpoint with the highest mIoU on the validation split (the last one without such a split).
        miou: of that checkpoint on that split, NaN without one.
        losses: mean training loss per epoch.
    """

    folder: Path
    best: Path
    miou: float
    losses: tuple[float, ...]


def train(
    data: str | Path,
    *,
    config: TrainConfig | str | Path | None = None,
    out: str | Path = "runs/train",
    resume: bool = False,
    **overrides: Any,
) -> TrainResult:
    """Train a segmentation model.

    Args:
        data: folder of the data set (see :mod:`foveal.data.segmentation`).
        config: recipe, as an object or a YAML file; default: the run's own when resuming, else
            :class:`~foveal.config.TrainConfig`'s defaults.
        out: folder of the run.
        resume: go on from ``out``'s last epoch.
        **overrides: fields of TrainConfig that replace the recipe's.

    Raises:
        ConfigError: unknown or impossible setting; ``out`` holds a run already; nothing to resume.
        DataError: the data set cannot be used.
        TrainingError: the loss became NaN or infinite.
    """
    out = Path(out)
    if resume and config is None and (out / "config.yaml").exists():
        config = out / "config.yaml"
    config = _settings(config, overrides)
    _check_folder(out, config, resume)
    # On a machine without an accelerator, cpu=True is what makes torchrun's processes one group (gloo).
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision={"fp32": "no"}.get(config.precision, config.precision),
    )
    progress = Progress(enabled=accelerator.is_main_process)
    torch.manual_seed(config.seed)

    # ---- data
    samples = TrainSamples(SegmentationData.open(data, config.splits), config, progress)
    validation = SegmentationData.open(data, [config.val_split]) if config.val_split else None
    if validation and validation.labels != samples.data.labels:
        raise DataError(f"{data}: training and validation splits have different classes")
    labels, counts = samples.data.labels, (samples.pixels, samples.present)
    per_epoch = len(samples) // config.batch_size
    if not per_epoch:
        raise ConfigError(f"batch_size={config.batch_size} is above the {len(samples)} training images")
    if config.batch_size % accelerator.num_processes:
        raise ConfigError(f"batch_size={config.batch_size} does not divide by {accelerator.num_processes} processes")

    # ---- model
    model = create_model(
        config.model,
        config.task,
        num_classes=len(labels.names),
        weights=config.weights or None,
        **config.options,
    )
    info = info_of(model).replace(labels=labels, preprocess=samples.preprocess, tag="")
    model = model.to(memory_format=torch.channels_last)
    ema = AveragedModel(model, multi_avg_fn=_ema(config.ema_decay), use_buffers=True)
    ema = ema.to(accelerator.device)
    class_weights = torch.tensor(_loss_weights(config, *counts), dtype=torch.float32, device=accelerator.device)
    criterion = SegmentationLoss(config.loss, class_weights)
    optimizer = torch.optim.AdamW(_parameter_groups(model, config.weight_decay), lr=config.lr)
    steps = config.epochs * per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps, config.warmup))
    wrapped, optimizer = accelerator.prepare(model, optimizer)

    # ---- where to start
    state: dict[str, Any] = {"epoch": 0, "best": -1.0, "losses": [], "seconds": 0.0, "images": len(samples)}
    if resume:
        state = _restore(out / "state.pt", model, ema, optimizer, schedule, state)
        if state["images"] != len(samples):
            raise ConfigError(f"{out} was trained on {state['images']} images, {data} has {len(samples)}")
        if accelerator.is_main_process:
            _cut_log(out / "log.jsonl", state["epoch"])
        progress.note(f"resuming after epoch {state['epoch']} of {config.epochs}")
    elif accelerator.is_main_process:
        with written_whole(out / "config.yaml") as file:
            file.write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
    batches = Batches(len(samples), config, state["epoch"], accelerator.process_index, accelerator.num_processes)
    loader = DataLoader(
        samples,
        batch_sampler=batches,
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
        pin_memory=accelerator.device.type == "cuda",
    )

    # ---- loop
    started = time.monotonic() - state["seconds"]
    stream = iter(loader)
    with progress.bar("train", steps, state["epoch"] * per_epoch) as bar:
        for epoch in range(state["epoch"] + 1, config.epochs + 1):
            model.train()
            total = torch.zeros((), device=accelerator.device)
            for _ in range(per_epoch):
                image, target = (t.to(accelerator.device, non_blocking=True) for t in next(stream))
                image = image.contiguous(memory_format=torch.channels_last)
                with accelerator.autocast():
                    logits = wrapped(image, upsample=False)
                loss = criterion(logits, target)
                accelerator.backward(loss)
                if config.grad_clip:
                    accelerator.clip_grad_norm_(model.parameters(), config.grad_clip)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)
                ema.update_parameters(model)
                total += loss.detach()
                bar.advance(f"epoch {epoch}/{config.epochs}")
            mean_loss = _over_processes(accelerator, total, "mean").item() / per_epoch
            if not math.isfinite(mean_loss):
                raise TrainingError(f"the loss became {mean_loss} in epoch {epoch}: lower lr, or use precision fp32")
            state["losses"].append(mean_loss)
            state["epoch"], state["seconds"] = epoch, time.monotonic() - started
            line = {"epoch": epoch, "loss": mean_loss, "lr": schedule.get_last_lr()[0], "seconds": state["seconds"]}
            if epoch % config.eval_every == 0 or epoch == config.epochs:
                described = info.replace(notes=_notes(config, samples.data, line))
                averaged = ema.module if config.ema_decay else model
                scores = _validate(accelerator, averaged, described, validation) if validation else None
                if scores:
                    line |= scores.to_dict()
                    progress.note(f"epoch {epoch}: loss {mean_loss:.4f}, {config.val_split} mIoU {scores.miou:.2%}")
                if accelerator.is_main_process:
                    better = scores is None or not scores.miou < state["best"]
                    described = described.replace(notes=_notes(config, samples.data, line))
                    for name in ("last", "best") if better else ("last",):
                        save_checkpoint(out / f"{name}.safetensors", averaged.state_dict(), described)
                if scores and scores.miou > state["best"]:
                    state["best"] = scores.miou
            if accelerator.is_main_process:
                _log(out / "log.jsonl", line)
                _save_state(out / "state.pt", model, ema, optimizer, schedule, state)
    accelerator.wait_for_everyone()
    miou = state["best"] if validation else float("nan")
    return TrainResult(out, out / "best.safetensors", miou, tuple(state["losses"]))


class TrainSamples(Dataset):
    """Augmented samples, ``(epoch, index) -> (image (3, h, w) float32, target (h, w) int64)``.

    The data set is decoded once and stays in memory, four bytes per pixel.

    The draw depends on the seed, the epoch and the index alone: not on workers, processes or where a run resumed.
    """

    def __init__(self, data: SegmentationData, config: TrainConfig, progress: Progress) -> None:
        self.data, self.seed = data, config.seed
        with progress.bar("read", len(data)) as bar:
            self.decoded: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]] = []
            for index in range(len(data)):
                self.decoded.append(data[index])
                bar.advance()
        self.pixels, self.present = class_counts([mask for _, mask in self.decoded], len(data.labels.names))
        weights = np.sqrt(median_frequency_weights(self.pixels, self.present))
        self.augment = SegmentAugment(
            config.crop,
            config.scale,
            config.flip,
            config.jitter,
            config.tint,
            config.rare_crop,
            tuple(weights.tolist()),
        )
        self.preprocess = ModelInfo().preprocess

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        epoch, index = place
        rng = np.random.default_rng((self.seed, epoch, index))
        image, mask = self.augment(*self.decoded[index], rng=rng)
        return torch.from_numpy(prepare(image, self.preprocess)[0]), torch.from_numpy(mask.astype(np.int64))


class Batches(Sampler):
    """This process's share of every batch of a run, from ``epoch`` on; the order depends on the seed alone."""

    def __init__(self, length: int, config: TrainConfig, epoch: int, rank: int, world: int) -> None:
        self.length, self.config, self.first = length, config, epoch
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return (self.config.epochs - self.first) * (self.length // self.config.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        size = self.config.batch_size
        for epoch in range(self.first, self.config.epochs):
            order = np.random.default_rng((self.config.seed, epoch)).permutation(self.length)
            for start in range(0, self.length - size + 1, size):
                yield [(epoch, int(i)) for i in order[start : start + size][self.rank :: self.world]]


def learning_rate(step: int, steps: int, warmup: float) -> float:
    """Share of the peak rate: linear rise over the first ``warmup`` of the steps, then a half cosine to 0."""
    rise = max(1, round(steps * warmup))
    if step < rise:
        return (step + 1) / rise
    return 0.5 + 0.5 * math.cos(math.pi * (step - rise) / max(1, steps - rise))


def _settings(config: TrainConfig | str | Path | None, overrides: dict[str, Any]) -> TrainConfig:
    if isinstance(config, str | Path):
        return build_config(TrainConfig, read_yaml(config) | overrides, str(config))
    return build_config(TrainConfig, (to_dict(config) if config else {}) | overrides)


def _check_folder(out: Path, config: TrainConfig, resume: bool) -> None:
    if not resume:
        if (out / "state.pt").exists():
            raise ConfigError(f"{out} holds a run already: resume it, or choose another folder")
        return
    if not (out / "state.pt").exists():
        raise ConfigError(f"{out}: nothing to resume")
    before = read_yaml(out / "config.yaml")
    changed = [key for key, value in to_dict(config).items() if before.get(key) != value]
    if changed:
        raise ConfigError(f"{out} was started with another {', '.join(changed)}: resume with {out / 'config.yaml'}")


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights decay; norms and biases do not."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _loss_weights(config: TrainConfig, pixels: np.ndarray, present: np.ndarray) -> np.ndarray:
    if config.class_weights == "none":
        return np.ones(len(pixels))
    weights = median_frequency_weights(pixels, present)
    return np.sqrt(weights) if config.class_weights == "sqrt_median" else weights


def _validate(accelerator: Accelerator, model: nn.Module, info: ModelInfo, data: SegmentationData) -> SegmentScores:
    """Score ``model`` on ``data``, each image counted once over all processes."""
    training = model.training
    if accelerator.num_processes > 1:  # batch norms have counted each process's own share
        for buffer in model.buffers():
            broadcast(buffer)
    predictor = Predictor(TorchRunner(model, str(accelerator.device)), info, "torch")
    matrix = np.zeros((info.num_classes, info.num_classes), np.int64)
    for index in range(accelerator.process_index, len(data), accelerator.num_processes):
        image, target = data[index]
        matrix += confusion_matrix(target, predictor.segment(image).mask, info.num_classes)
    total = _over_processes(accelerator, torch.from_numpy(matrix).to(accelerator.device), "sum")
    model.train(training)
    return SegmentScores(total.cpu().numpy(), info.labels.names)


def _over_processes(accelerator: Accelerator, value: Tensor, how: str) -> Tensor:
    return cast(Tensor, accelerator.reduce(value, how))


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


def _notes(config: TrainConfig, data: SegmentationData, line: dict[str, Any]) -> dict[str, Any]:
    settings = to_dict(config) | {
        "weights": Path(config.weights).name
    }  # a path of this machine means nothing elsewhere
    return {"config": settings, "images": len(data), "log": line}


def _log(path: Path, line: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _cut_log(path: Path, epoch: int) -> None:
    """Drop lines after ``epoch``: a crash may come between the log and the state."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    with written_whole(path) as file:
        file.write_text("".join(f"{line}\n" for line in lines if json.loads(line)["epoch"] <= epoch))


def _save_state(
    path: Path,
    model: nn.Module,
    ema: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    state: dict[str, Any],
) -> None:
    parts = {"model": model, "ema": ema, "optimizer": optimizer, "schedule": schedule}
    with written_whole(path) as temporary:
        torch.save({**{name: part.state_dict() for name, part in parts.items()}, "state": state}, temporary)


def _restore(path: Path, model, ema, optimizer, schedule, state: dict[str, Any]) -> dict[str, Any]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        for name, part in {"model": model, "ema": ema, "optimizer": optimizer, "schedule": schedule}.items():
            part.load_state_dict(found[name])
    except Exception as error:  # pickle, zip and torch each raise their own
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path}: cannot be resumed from ({reason}); start again from best.safetensors"
        ) from error
    return state | found["state"]
