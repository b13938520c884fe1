"""The settings that every task has; those of one task are in the file of its settings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from .distil_terms import TERMS, DistilName
from .optimizers import OPTIMIZERS
from .schedules import SCHEDULES
from .settings import Range, above, at_least, below, between, setting
from .tune_kinds import KINDS, LAYERS

_PART = re.compile(r"backbone|stem|norms|stage[1-9]\d{0,2}")
DEFAULT_CROP = (288, 384)  #: (H, W) of training crops for tasks whose images keep their own size


@dataclass(frozen=True)
class CommonSettings:
    """The settings that every task has."""

    model: str = setting("efficientvit_b0", "Architecture: a name that 'foveal models' lists.")
    task: Literal["segment", "classify", "upscale", "regress", "prompt"] = setting(
        "segment", "Task to train the model for."
    )
    in_chans: int = setting(
        0,
        "Channels of the images. 0: those of the data, 3 for images that are or can become RGB. Colour changes "
        "(jitter, tint) are for 3 channels of 8 bits, and left out for others.",
        Range("0, or 1 to 1024", lambda value: 0 <= value <= 1024),
    )
    options: dict[str, Any] = setting({}, "Further keyword arguments of create_model.")  # noqa: RUF009 (a field)
    weights: str = setting("", "Weights to start from: tag, path or hub id. Empty: random weights.", is_path=True)
    teacher: str = setting(
        "",
        "Model that the run learns from (distillation): name, path or hub id; an exported file, too, unless the task "
        "is prompt. Its task and its classes are those of the run. Promptable models: the image encoder learns its "
        "embeddings, and its prompt encoder and mask decoder are copied. Empty: labels alone.",
        is_path=True,
    )
    distil: dict[DistilName, tuple[float, float] | float] = setting(  # noqa: RUF009 (a field)
        {},
        "Factor of each term of the loss that teaches, or [factor, temperature]: "
        f"{'; '.join(f'{name}, {term.help}' for name, term in TERMS.items())}. Default with a teacher: {{logits: 1}}, "
        "for upscale {output: 1}.",
    )
    splits: tuple[str, ...] = setting(
        ("train",),
        "Splits of the data set that together are the training set.",
        Range("at least one split", lambda value: len(value) >= 1),
    )
    val_split: str = setting(
        "val",
        "Split that is evaluated to select the best checkpoint. Empty: the last checkpoint counts as the best.",
    )
    epochs: int = setting(
        100,
        "Number of epochs. An epoch is one pass over the training set, or samples_per_epoch images.",
        at_least(1),
        phased=True,
    )
    samples_per_epoch: int = setting(
        0,
        "Images per epoch, where one pass over the training set is too long or too short. 0: one pass.",
        Range("0, or at least batch_size", lambda value: value >= 0),
        phased=True,
    )
    shuffle_buffer: int = setting(
        10000,
        "For tar files: number of samples, in the order of the files, from which the next one is drawn.",
        at_least(1),
    )
    batch_size: int = setting(
        8,
        "Images per optimiser step, over all processes. auto: the largest power of two that fits into 60 % of the free "
        "memory, at most 256 per process and a quarter of the training set, but at least 2 per process.",
        at_least(1),
        phased=True,
    )
    auto_batch_size: bool = setting(False, "The same as batch_size: auto.", phased=True)
    accumulate: int = setting(
        1,
        "Pieces into which each process cuts its share of a batch, to save memory. Batch norms get single pieces.",
        Range("1 to batch_size", lambda value: value >= 1),
        phased=True,
    )
    crop: tuple[int, int] | None = setting(
        None,
        "Height and width of the training crops, in pixels; one number is the side of a square. Upscaling: those of "
        "the large image. Default: for classifiers the input size of the weights or else of the architecture, "
        "otherwise 288 x 384.",
        Range("two sides of 32 or more", lambda value: min(value) >= 32),
        phased=True,
    )
    scale: tuple[float, float] = setting(
        (0.6, 1.8),
        "Segmentation and regression: range of the random scaling before cropping.",
        Range("two numbers above 0, the smaller one first", lambda value: 0 < value[0] <= value[1]),
    )
    flip: float = setting(
        0.5, "Probability of a horizontal flip. Upscaling: of vertical and diagonal flips too.", between(0, 1)
    )
    jitter: float = setting(0.3, "Strength of the random changes of brightness, contrast and saturation.", below(1))
    tint: float = setting(
        0.0, "Strength of a random gain per colour channel, which imitates other cameras and other light.", below(1)
    )
    augment: dict[str, Any] = setting(  # noqa: RUF009 (a field)
        {},
        "Further augmentations of segmentation and classification by name, for example {rotate: 15, rand_augment: [2, "
        "9], cutmix: 1.0}; docs/training.md describes each.",
        phased=True,
    )
    transform: str = setting(
        "",
        "A function of your own, module:function, that is called with the image, its mask or class and a random "
        "generator, after all other augmentations. It is code, so recipes cannot set it.",
        phased=True,
        runs_code=True,
    )
    optimizer: str = setting(
        "adamw",
        f"Optimiser: {'; '.join(f'{name}, {each.help}' for name, each in OPTIMIZERS.items())}.",
        names=tuple(OPTIMIZERS),
    )
    momentum: float = setting(0.95, "Momentum of sgd and muon.", below(1))
    lr: float = setting(2e-3, "Peak learning rate.", above(0), phased=True)
    backbone_lr_scale: float | None = setting(
        None,
        "Learning rate of the backbone, as a multiple of lr. Default: 0.1 for classes that are learnt from weights "
        "with the default lr, otherwise 1.",
        at_least(0),
    )
    layer_decay: float = setting(
        1.0,
        "Factor of the learning rate from each block of the backbone to the block before it. 1: the same rate for all.",
        Range("a number above 0 and at most 1", lambda value: 0 < value <= 1),
    )
    weight_decay: float = setting(
        0.05, "Weight decay, in each step in proportion to lr. Norms and biases have none.", at_least(0), phased=True
    )
    warmup: float = setting(
        0.05, "Share of the steps over which the learning rate rises to its peak.", below(1), phased=True
    )
    schedule: str = setting(
        "cosine",
        "How the learning rate falls after its peak: "
        f"{'; '.join(f'{name}, {each.help}' for name, each in SCHEDULES.items())}.",
        names=tuple(SCHEDULES),
        phased=True,
    )
    freeze: tuple[str, ...] = setting(
        (),
        "Parts that are not trained, and whose batch norms keep their statistics: backbone; stem; stage2 for the stem "
        "and the stages up to the second; norms.",
        Range(
            "any of backbone, stem, stage1 up to the last stage, norms", lambda parts: all(map(_PART.fullmatch, parts))
        ),
    )
    drop_path: float | None = setting(
        None,
        "Probability that the last residual branch of the backbone is left out for an image (stochastic depth); it "
        "rises linearly from the first branch on. Default: the architecture's own, see its options.",
        below(1),
    )
    zero_init_last: bool = setting(
        False,
        "Begin with residual branches that are zero: the weight of the last batch norm of each. For random weights.",
    )
    repeats: int = setting(
        1,
        "Times that an image is in a batch, each time with another augmentation; a pass over the data is so many "
        "times as long.",
        Range("1 to batch_size, of which it is a divisor", lambda value: value >= 1),
    )
    tune: str = setting(
        "",
        "Train only the head and a few other parameters of a model with weights, and save only these: "
        f"{'; '.join(f'{name}, {each.help}' for name, each in KINDS.items())}. Empty: train the whole model.",
        names=("", *KINDS),
    )
    lora_rank: int = setting(4, "Rank of the additions of tune: lora.", between(1, 1024))
    lora_alpha: float | None = setting(
        None, "The additions of tune: lora are multiplied by lora_alpha / lora_rank. Default: by 1.", above(0)
    )
    lora_where: str = setting(
        "dense",
        f"Layers of tune: lora: {'; '.join(f'{name}, {text}' for name, text in LAYERS.items())}.",
        names=tuple(LAYERS),
    )
    prompt_tokens: int = setting(8, "Tokens at the input of each stage with tune: prompt.", between(1, 256))
    ema_decay: float = setting(
        0.995,
        "Decay of the exponential moving average of the weights, which is evaluated and saved. 0: no averaging.",
        below(1),
    )
    grad_clip: float = setting(5.0, "Largest norm of the gradient. 0: no clipping.", at_least(0))
    grad_checkpointing: bool = setting(
        False, "Compute the backbone's stages again in the backward pass, to save memory."
    )
    freeze_bn: bool = setting(False, "Keep the batch norms' statistics that the run starts with.")
    sync_bn: bool = setting(True, "Share the batch norms' statistics between the processes.")
    fsdp: bool = setting(
        False,
        "Shard parameters, gradients and optimiser state over torchrun's processes (FSDP2), for a model that does not "
        "fit into the memory of each process.",
        resumable=True,
    )
    bn_batches: int | None = setting(
        None,
        "At the end, estimate the batch norms' statistics for the averaged weights on so many training batches. 0: use "
        "the averaged statistics. Default: 10 where that of backbone_lr_scale is 0.1, without freeze_bn; otherwise 0.",
        at_least(0),
    )
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = setting(
        "fp32",
        "Number format: fp32; bf16 or fp16 (autocast); fp64 (all computations, to tell rounding errors from others).",
    )
    device: str = setting("auto", "Device: auto (the GPU if there is one), cpu, cuda, cuda:N or mps.", resumable=True)
    workers: int = setting(1, "Data loading processes of each training process.", at_least(0), resumable=True)
    cache_gib: float = setting(
        2.0,
        "Memory for decoded images in each process, in GiB. Further images are read from their files each time.",
        at_least(0),
    )
    max_bad: float = setting(
        0.01,
        "Share of the training images that may be unreadable; others take their places. With more, the run ends.",
        between(0, 0.5),
        resumable=True,
    )
    eval_every: int = setting(10, "Epochs between evaluations.", at_least(1))
    patience: int = setting(
        0,
        "Stop after so many evaluations in a row without a better validation figure. 0: never.",
        at_least(0),
        needs="val_split",
        resumable=True,
    )
    save_minutes: float = setting(
        10.0,
        "Minutes between saves of the training state within an epoch. It is also saved at the end of each epoch.",
        above(0),
        resumable=True,
    )
    log_every: int = setting(0, "Steps between lines of the log within an epoch. 0: one line per epoch.", at_least(0))
    csv: bool = setting(False, "Also write the log as log.csv.", resumable=True)
    tensorboard: bool = setting(False, "Also write the log as TensorBoard files.", resumable=True)
    wandb: bool = setting(
        False, "Also send the log to Weights & Biases; WANDB_MODE=offline keeps it on this machine.", resumable=True
    )
    mlflow: bool = setting(False, "Also log to MLflow, at the address in MLFLOW_TRACKING_URI.", resumable=True)
    seed: int = setting(
        0,
        "Seed of the initial weights, the order of the images and their augmentation.",
        Range("0 to 2**63 - 1", lambda value: 0 <= value < 1 << 63),
    )
