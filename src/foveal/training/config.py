"""The settings of a training run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import ConfigError

#: What :mod:`foveal.training.losses` has.
LossName = Literal["cross_entropy", "ohem", "focal", "dice", "jaccard", "lovasz", "boundary"]


#: What :mod:`foveal.data.degradation` does: smallest and largest value of each range.
DegradationName = Literal["blur", "noise", "jpeg"]


_LIMITS = {"blur": (0.0, 20.0), "noise": (0.0, 255.0), "jpeg": (1.0, 100.0)}


#: Settings that one task alone has.
_TASK_OF = {
    **dict.fromkeys(("rare_crop", "loss", "class_map", "deep_supervision"), "segment"),
    **dict.fromkeys(("label_smoothing",), "classify"),
    **dict.fromkeys(("late_crop", "degradation", "pixel_loss"), "upscale"),
    **dict.fromkeys(("teacher", "embeddings", "teacher_prompts", "freeze_encoder"), "prompt"),
}


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Every field is an option of ``foveal train`` and a key of a recipe.

    Attributes:
        model: architecture.
        task: what to train it for.
        options: further keyword arguments of ``create_model``.
        weights: where to start from: tag, path or hub id; empty: random.
        splits: training splits of the data set, together one training set.
        val_split: split to select the best checkpoint on; empty: keep the last.
        epochs: how many; each is a pass over the training set, or ``samples_per_epoch``.
        samples_per_epoch: images after which an epoch ends, where a pass over the set is too long, or too short; 0: a
            pass.
        shuffle_buffer: tar files: samples, in the order of the files, that the next one is drawn from.
        batch_size: images per optimiser step, over all processes.
        accumulate: pieces that a process's share of a batch is cut into, to save memory; batch norms see the pieces.
        crop: (H, W) of the training crops, in pixels; upscaling: of the large image.
        late_crop: upscaling: that size in the last quarter of the run, (0, 0): the same.
        scale: segmentation: range of the random scaling before cropping.
        area: classification: range of the share of the image that a crop covers.
        crop_ratio: classification: centre crop over resized short side when evaluating.
        flip: probability of a horizontal flip; upscaling: of vertical and diagonal ones too.
        jitter: strength of the jitter of brightness, contrast and saturation, 0..1.
        tint: strength of a random gain per colour channel, 0..1: other cameras, other light.
        rare_crop: probability that a crop is placed on a pixel of a class drawn by its weight.
        loss: segmentation: factor of each term by name (see :mod:`foveal.training.losses`); those left out have none.
        degradation: upscaling: range of each thing that spoils the small image, by name (see
            :mod:`foveal.data.degradation`); none: a bicubic small image, or the data set's own.
        pixel_loss: upscaling: "l1" or "charbonnier".
        teacher: prompting: model whose embeddings the image encoder learns, a name, path or hub id; its decoder is
            taken over. Empty: masks are learnt.
        embeddings: prompting: folder that keeps the teacher's embeddings; empty: ``embeddings`` in the run's folder.
        teacher_prompts: prompting: places of an image at which the student learns the teacher's masks in a step, beside
            its embeddings.
        freeze_encoder: prompting: whether the image encoder stays as it is while masks are learnt.
        prompts: prompting: objects of an image that are asked for in a step, at most.
        clicks: prompting: clicks on mistakes that follow each first prompt.
        class_weights: how rarity weighs in the loss: "none", "sqrt_median", "median" (frequency balancing).
        label_smoothing: classification: share of the target that goes to the other classes.
        class_map: segmentation: YAML file ``class of the weights: class of the data``; the classifier starts from that
            of ``weights``, each class from the mean of those that count as it. Empty: other classes start fresh.
        deep_supervision: segmentation: weight of auxiliary classifiers on the two coarsest maps; 0: none.
        lr: peak learning rate of AdamW.
        weight_decay: of weights; norms and biases have none.
        warmup: share of the steps with rising learning rate.
        ema_decay: of the averaged weights, which are evaluated and saved; 0: none.
        grad_clip: largest norm of the gradient; 0: not clipped.
        grad_checkpointing: whether the backbone's stages are computed again in the backward pass, to save memory.
        freeze_bn: whether the batch norms keep the statistics that they start with.
        sync_bn: whether the batch norms of several processes share their statistics.
        fsdp: whether parameters, gradients and optimiser are sharded over the processes (FSDP2), for models that do not
            fit on each of them.
        bn_batches: training batches to estimate the averaged weights' norm statistics on, at the end; 0: keep averages.
        precision: "fp32", "bf16" or "fp16" (autocast), or "fp64" (everything: to tell rounding from error).
        workers: data loading processes.
        cache_gib: memory for decoded images, in GiB, in each process; the rest is read from files each time.
        max_bad: share of the training images that may be bad: others take their places. Beyond it the run ends.
        eval_every: epochs between evaluations.
        save_minutes: minutes between saves of the state within an epoch; every epoch's end saves too.
        log_every: steps between lines of the log within an epoch; 0: none.
        csv: whether to write log.csv as well.
        tensorboard: whether to write TensorBoard's files as well.
        seed: of weights, order and augmentation.
    """

    model: str = "efficientvit_b0"
    task: Literal["segment", "classify", "upscale", "prompt"] = "segment"
    options: dict[str, Any] = field(default_factory=dict)
    weights: str = ""
    splits: tuple[str, ...] = ("train",)
    val_split: str = "val"
    epochs: int = 100
    samples_per_epoch: int = 0
    shuffle_buffer: int = 10000
    batch_size: int = 8
    accumulate: int = 1
    crop: tuple[int, int] = (288, 384)
    late_crop: tuple[int, int] = (0, 0)
    scale: tuple[float, float] = (0.6, 1.8)
    area: tuple[float, float] = (0.25, 1.0)
    crop_ratio: float = 0.875
    flip: float = 0.5
    jitter: float = 0.3
    tint: float = 0.0
    rare_crop: float = 0.0
    loss: dict[LossName, float] = field(default_factory=lambda: {"cross_entropy": 1.0})
    degradation: dict[DegradationName, tuple[float, float]] = field(default_factory=dict)
    pixel_loss: Literal["l1", "charbonnier"] = "l1"
    teacher: str = ""
    embeddings: str = ""
    teacher_prompts: int = 0
    freeze_encoder: bool = False
    prompts: int = 16
    clicks: int = 2
    class_weights: Literal["none", "sqrt_median", "median"] = "sqrt_median"
    label_smoothing: float = 0.0
    class_map: str = ""
    deep_supervision: float = 0.0
    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    ema_decay: float = 0.995
    grad_clip: float = 5.0
    grad_checkpointing: bool = False
    freeze_bn: bool = False
    sync_bn: bool = True
    fsdp: bool = False
    bn_batches: int = 0
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = "fp32"
    workers: int = 1
    cache_gib: float = 2.0
    max_bad: float = 0.01
    eval_every: int = 10
    save_minutes: float = 10.0
    log_every: int = 0
    csv: bool = False
    tensorboard: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        checks = {
            "epochs": self.epochs >= 1,
            "samples_per_epoch": self.samples_per_epoch == 0 or self.samples_per_epoch >= self.batch_size,
            "shuffle_buffer": self.shuffle_buffer >= 1,
            "batch_size": self.batch_size >= 1,
            "accumulate": 1 <= self.accumulate <= self.batch_size,
            "crop": min(self.crop) >= 32,
            "late_crop": self.late_crop == (0, 0) or min(self.late_crop) >= 32,
            "area": 0 < self.area[0] <= self.area[1] <= 1,
            "crop_ratio": 0 < self.crop_ratio <= 1,
            "scale": 0 < self.scale[0] <= self.scale[1],
            "flip": 0 <= self.flip <= 1,
            "jitter": 0 <= self.jitter < 1,
            "tint": 0 <= self.tint < 1,
            "rare_crop": 0 <= self.rare_crop <= 1,
            "label_smoothing": 0 <= self.label_smoothing < 1,
            "deep_supervision": self.deep_supervision >= 0,
            "bn_batches": self.bn_batches >= 0,
            "cache_gib": self.cache_gib >= 0,
            "max_bad": 0 <= self.max_bad <= 0.5,
            "save_minutes": self.save_minutes > 0,
            "log_every": self.log_every >= 0,
            "degradation": all(
                _LIMITS[name][0] <= low <= high <= _LIMITS[name][1] for name, (low, high) in self.degradation.items()
            ),
            "teacher_prompts": self.teacher_prompts >= 0,
            "prompts": self.prompts >= 1,
            "clicks": self.clicks >= 0,
            "loss": len(self.loss) >= 1 and min(self.loss.values()) > 0,
            "lr": self.lr > 0,
            "weight_decay": self.weight_decay >= 0,
            "warmup": 0 <= self.warmup < 1,
            "ema_decay": 0 <= self.ema_decay < 1,
            "grad_clip": self.grad_clip >= 0,
            "workers": self.workers >= 0,
            "eval_every": self.eval_every >= 1,
            "splits": len(self.splits) >= 1,
            "seed": 0 <= self.seed < 1 << 63,
        }
        for name, good in checks.items():
            if not good:
                raise ConfigError(f"{name}={getattr(self, name)!r} is out of range")
        for name, task in _TASK_OF.items():
            unset = dataclasses.MISSING
            own = type(self).__dataclass_fields__[name]
            default = own.default if own.default_factory is unset else own.default_factory()
            if self.task != task and getattr(self, name) != default:
                raise ConfigError(f"{name}={getattr(self, name)!r} is for {task!r}, not {self.task!r}: leave it out")
        if self.class_map and not self.weights:
            raise ConfigError(f"class_map={self.class_map!r} needs weights, whose classes it names")
        if self.teacher_prompts and not self.teacher:
            raise ConfigError(f"teacher_prompts={self.teacher_prompts} needs a teacher: name a promptable model")
