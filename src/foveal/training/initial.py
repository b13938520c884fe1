"""How the model of a run starts: from which weights, with residual branches that are zero at first or dropped."""

from __future__ import annotations

from torch import nn

from ..data.class_map import abbreviate
from ..errors import ConfigError
from ..factory.create import create_and_report
from ..info import ModelInfo, Preprocess
from ..layers.drop_path import spread_drop_path
from ..layers.zero_init import zero_init_last
from ..models.registry import variants
from ..weights.loading import LoadReport
from .common_settings import CommonSettings
from .config import TrainConfig
from .job import Job, model_options, target_of
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


def notes_on_start(config: TrainConfig, job: Job, loaded: LoadReport | None, known: ModelInfo) -> list[str]:
    """Lines on what starts from weights, and how fast it is trained.

    Args:
        config: settings.
        job: the task's part.
        loaded: what the weights gave.
        known: description of the new model, with the classes and the target of the weights where they fit.
    """
    notes = []
    if loaded and loaded.reinitialized and not config.class_map:
        names = sorted({key.rpartition(".")[0] for key in loaded.reinitialized})
        notes.append(f"not from the weights, so trained from random values: {abbreviate(names)}")
    elif loaded and not config.class_map and known.labels.names != job.labels.names:
        both = zip(known.labels.names, job.labels.names, strict=False)
        pairs = [f"{old} -> {new}" for old, new in both if old != new]
        notes.append(f"the classifier of the weights is kept row by row: {abbreviate(pairs) or 'of unnamed classes'}")
    if loaded and loaded.info and (note := _note_on_statistics(job.preprocess, loaded.info.preprocess)):
        notes.append(note)
    target = target_of(job)
    if loaded and not known.target.means_what(target):
        notes.append(
            f"the weights predict {known.target.in_words()}, the data has {target.in_words()}: the mean and standard "
            "deviation of the output become those of the data"
        )
    scale = config.backbone_lr_scale
    if scale is not None and scale != 1:
        notes.append(f"peak learning rate {config.lr:g}, of the backbone {scale * config.lr:g} (backbone_lr_scale)")
    return notes


def _note_on_statistics(own: Preprocess, weights: Preprocess) -> str:
    """A line if images of the same bands were normalised otherwise when the weights were trained; else empty."""
    same_bands = (own.dtype, len(own.mean)) == (weights.dtype, len(weights.mean))
    if not same_bands or (own.mean, own.std) == (weights.mean, weights.std):
        return ""
    texts = [
        f"mean {' '.join(f'{value:.3g}' for value in each.mean)}, std {' '.join(f'{value:.3g}' for value in each.std)}"
        for each in (own, weights)
    ]
    return (
        f"images are normalised by {texts[0]}, for the weights they were by {texts[1]}: to keep those of the weights, "
        "write them as mean and std into dataset.yaml"
    )


def _channels(config: TrainConfig, job: Job) -> int:
    """Channels of the images that the job trains on."""
    channels = len(job.preprocess.mean)
    if config.in_chans not in (0, channels):
        raise ConfigError(f"in_chans={config.in_chans}: models for {config.task!r} take images of {channels} channels")
    if "in_chans" in config.options:
        raise ConfigError("options: in_chans is a setting of its own: write in_chans=N, not options={in_chans: N}")
    return channels
