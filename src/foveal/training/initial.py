"""How the model of a run starts: from which weights, with residual branches that are zero at first or dropped."""

from __future__ import annotations

from torch import nn

from ..data.class_map import abbreviate
from ..errors import ConfigError
from ..factory.create import create_and_report
from ..info import Labels, Preprocess
from ..layers.drop_path import spread_drop_path
from ..layers.zero_init import zero_init_last
from ..models.registry import variants
from ..weights.loading import LoadReport
from .common_settings import CommonSettings
from .config import TrainConfig
from .job import Job, model_options
from .settings import default_of, setting_fields


def check_model(config: TrainConfig) -> None:
    """Check that the model is for the task, before the data is read.

    Raises:
        ConfigError: it is not; the message has models that are.
    """
    name, known = config.model.partition(".")[0], variants()
    if name not in known or config.task in known[name][1].tasks:  # create_model refuses an unknown name
        return
    default = next(default_of(declared) for declared, _ in setting_fields(config) if declared.name == "model")
    which = f"{name}, the default model," if config.model == default else name
    names = [each for each, (_, variant) in known.items() if config.task in variant.tasks]
    names.sort(key=lambda each: each != default)
    raise ConfigError(f"{which} is not for {config.task!r}: give another model (--model): {abbreviate(names)}")


def create_initial_model(config: TrainConfig, job: Job) -> tuple[nn.Module, LoadReport | None]:
    """Create the model that the settings name, for the classes and the channels of the data.

    Returns:
        The model, and what its weights gave; ``None`` without weights.

    Raises:
        ConfigError: the settings do not fit the model or the data.
        CheckpointError: the weights cannot be used.
    """
    model, loaded = create_and_report(
        config.model,
        config.task,
        num_classes=len(job.labels.names),
        in_chans=_channels(config, job),
        weights=config.weights or None,
        **model_options(job, config),
    )
    initialise_branches(model, config)
    return model, loaded


def initialise_branches(model: nn.Module, config: CommonSettings) -> None:
    """Apply ``drop_path`` and ``zero_init_last`` to the backbone of a new model.

    Raises:
        ConfigError: the backbone has no such branches, or has weights, whose branches are not to be zeroed.
    """
    backbone = getattr(model, "backbone", None) or model
    if config.drop_path is not None and not spread_drop_path(backbone, config.drop_path):
        raise ConfigError(f"drop_path={config.drop_path}: {config.model} has no residual branches that can be dropped")
    if config.zero_init_last:
        if config.weights or "." in config.model:
            raise ConfigError(
                "zero_init_last is for random weights: it would overwrite norms of the weights that the run starts "
                "from; leave one of the two out"
            )
        if not zero_init_last(backbone):
            raise ConfigError(f"zero_init_last: {config.model} has no residual branch that ends in a batch norm")


def notes_on_start(config: TrainConfig, job: Job, loaded: LoadReport | None, known: Labels) -> list[str]:
    """Lines on what starts from weights, and how fast it is trained.

    Args:
        config: settings.
        job: the task's part.
        loaded: what the weights gave.
        known: classes of the weights, if their number is that of the data.
    """
    notes = []
    if loaded and loaded.reinitialized and not config.class_map:
        names = sorted({key.rpartition(".")[0] for key in loaded.reinitialized})
        notes.append(f"not from the weights, so trained from random values: {abbreviate(names)}")
    elif loaded and not config.class_map and known.names != job.labels.names:
        pairs = [f"{old} -> {new}" for old, new in zip(known.names, job.labels.names, strict=False) if old != new]
        notes.append(f"the classifier of the weights is kept row by row: {abbreviate(pairs) or 'of unnamed classes'}")
    weights = loaded.info.preprocess if loaded and loaded.info else job.preprocess
    if (weights.mean, weights.std) != (job.preprocess.mean, job.preprocess.std):
        notes.append(
            f"images are normalised by {_statistics(job.preprocess)}; those of the weights were by "
            f"{_statistics(weights)}: write mean and std into dataset.yaml to keep these"
        )
    scale = config.backbone_lr_scale
    if scale is not None and scale != 1:
        notes.append(f"peak learning rate {config.lr:g}, of the backbone {scale * config.lr:g} (backbone_lr_scale)")
    return notes


def _statistics(preprocess: Preprocess) -> str:
    return ", ".join(
        f"{name} {' '.join(f'{value:.3g}' for value in values)}"
        for name, values in (("mean", preprocess.mean), ("std", preprocess.std))
    )


def _channels(config: TrainConfig, job: Job) -> int:
    """Channels of the images that the job trains on."""
    channels = len(job.preprocess.mean)
    if config.in_chans not in (0, channels):
        raise ConfigError(f"in_chans={config.in_chans}: models for {config.task!r} take images of {channels} channels")
    if "in_chans" in config.options:
        raise ConfigError("options: in_chans is a setting of its own: write in_chans=N, not options={in_chans: N}")
    return channels
