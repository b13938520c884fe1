"""The settings of a training run: the common ones, and those of each task."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass
from pathlib import Path
from typing import Any

from ..config import build_config, parse_sides, shown, to_dict
from ..errors import ConfigError
from ..task import TASKS
from .classify_settings import ClassifySettings
from .common_settings import CommonSettings
from .distil_settings import check_distil
from .optimizers import OPTIMIZERS
from .prompt_settings import PromptSettings
from .recipe import read_recipe
from .regress_settings import RegressSettings
from .segment_settings import SegmentSettings
from .settings import Setting, check_needs, check_ranges, default_of, out_of_range, setting_fields
from .tune_kinds import check_tune
from .upscale_settings import UpscaleSettings

#: The settings class of each task, by the task's name.
TASK_SETTINGS: Mapping[str, type[CommonSettings]] = {
    "segment": SegmentSettings,
    "classify": ClassifySettings,
    "upscale": UpscaleSettings,
    "regress": RegressSettings,
    "prompt": PromptSettings,
}


AUGMENTED = ("segment", "classify")  #: tasks that augmentations of one's own are for
_CROPS = ("crop", "late_crop")
_FINE_SCALE, _FINE_BATCHES = 0.1, 10  # defaults of backbone_lr_scale and bn_batches where weights are fine-tuned


@dataclass(frozen=True)
class TrainConfig(PromptSettings, RegressSettings, UpscaleSettings, ClassifySettings, SegmentSettings):
    """The settings of one training run.

    Every field is a keyword argument of :func:`foveal.train`, a key of a recipe and, as ``--set.NAME``, an option of
    ``foveal train``. ``foveal train --help-all`` lists the fields with their meaning, default and valid range; they are
    declared in :class:`~foveal.training.common_settings.CommonSettings` and, those of one task, in the settings class
    of the task. Fields of other tasks must have their defaults.

    Raises:
        ConfigError: a value is out of range, belongs to another task, or needs another setting that is empty.
    """

    def __post_init__(self) -> None:
        for name in _CROPS:
            object.__setattr__(self, name, parse_sides(getattr(self, name)))
        check_ranges(self)
        if self.augment:
            from .augment import check_augment  # with NumPy, which listing the settings does not need

            check_augment(self.augment, self.task)
        if self.transform and self.task not in AUGMENTED:
            raise ConfigError(f"transform is for {' and '.join(AUGMENTED)}, not {self.task!r}: leave it out")
        if self.fsdp and OPTIMIZERS[self.optimizer].whole:
            raise ConfigError(f"optimizer={self.optimizer!r} needs whole matrices: leave fsdp out, or take adamw")
        if self.accumulate > self.batch_size and not self.auto_batch_size:
            raise out_of_range(self, "accumulate", f" ({self.batch_size})")
        if 0 < self.samples_per_epoch < self.batch_size and not self.auto_batch_size:
            raise out_of_range(self, "samples_per_epoch", f" ({self.batch_size})")
        if self.repeats > 1 and self.auto_batch_size:
            raise ConfigError(f"repeats={self.repeats} needs a batch_size that is a number: auto may not be divisible")
        if self.batch_size % self.repeats:
            raise out_of_range(self, "repeats", f" ({self.batch_size})")
        if "backbone" in self.freeze and self.layer_decay != 1:
            raise ConfigError("freeze: with backbone, layer_decay has nothing to act on: leave one of the two out")
        self._refuse_settings_of_other_tasks()
        check_needs(self)
        check_tune(self, {declared.name: default_of(declared) for declared, _ in setting_fields(self)})
        check_distil(self)

    def _refuse_settings_of_other_tasks(self) -> None:
        for task in TASK_SETTINGS:
            for declared, _ in own_fields(task):
                value = getattr(self, declared.name)
                if task != self.task and value != default_of(declared):
                    raise ConfigError(f"{declared.name}={value!r} is for {task!r}, not {self.task!r}: leave it out")


def own_fields(task: str) -> Iterator[tuple[Field[Any], Setting]]:
    """The settings of one task that are not common ones, in order."""
    common = {declared.name for declared, _ in setting_fields(CommonSettings)}
    return ((declared, info) for declared, info in setting_fields(TASK_SETTINGS[task]) if declared.name not in common)


def resolve_config(config: TrainConfig | str | Path | None, overrides: dict[str, Any]) -> TrainConfig:
    """Settings from an object or a YAML file (None: the defaults), some of them replaced by ``overrides``.

    Relative paths in the file begin at its folder; those that do not exist there, at the working directory.

    Raises:
        ConfigError: unknown setting, value of another type, or see :class:`TrainConfig`.
    """
    if overrides.get("batch_size", "auto") != "auto":  # a number replaces "auto"
        overrides = {"auto_batch_size": False} | overrides
    if isinstance(config, str | Path):
        values = read_recipe(config, _path_settings())
        refuse_code(values, overrides, str(config))
        return build_settings(values | overrides, str(config))
    return build_settings((to_dict(config) if config else {}) | overrides)


def refuse_code(values: Mapping[str, Any], given: Mapping[str, Any], source: str) -> None:
    """Refuse code that a file names, unless the user names it as well.

    Raises:
        ConfigError: the file names some.
    """
    for declared, info in setting_fields(TrainConfig):
        value = values.get(declared.name)
        if info.runs_code and value and given.get(declared.name) != value:
            raise ConfigError(
                f"{source}: {declared.name} runs code, which a file may not name: give --set.{declared.name} "
                f"{shown(value)} if you trust it, or leave it out"
            )


def build_settings(values: dict[str, Any], source: str = "options") -> TrainConfig:
    """Settings from plain values.

    Raises:
        ConfigError: as :func:`resolve_config`.
    """
    if values.get("batch_size") == "auto":
        values = {**values, "auto_batch_size": True}
        del values["batch_size"]
    sides = {name: parse_sides(values[name]) for name in _CROPS if name in values}
    return build_config(TrainConfig, values | sides, source)


def complete_finetuning(config: TrainConfig) -> TrainConfig:
    """Set ``backbone_lr_scale`` and ``bn_batches`` where they are not set.

    A new head needs the default learning rate. In a backbone with weights, that rate destroys in a few steps what it
    has learnt, and the batch norms' statistics lag behind. With another lr, a run does what its settings say.
    A few tuned parameters (tune) take the whole rate.
    """
    default_lr = next(default_of(declared) for declared, _ in setting_fields(config) if declared.name == "lr")
    has_weights = config.weights or "." in config.model
    fine = has_weights and TASKS[config.task].has_classes and config.lr == default_lr and not config.tune
    scale, batches = config.backbone_lr_scale, config.bn_batches
    if scale is None:
        scale = _FINE_SCALE if fine else 1.0
    if batches is None:
        batches = _FINE_BATCHES if fine and scale < 1 and not config.freeze_bn else 0
    return dataclasses.replace(config, backbone_lr_scale=scale, bn_batches=batches)


def portable_settings(config: TrainConfig) -> dict[str, Any]:
    """The settings as plain values for a checkpoint; of paths only the last part, as they mean nothing elsewhere."""
    return to_dict(config) | {name: Path(getattr(config, name)).name for name in _path_settings()}


def _path_settings() -> list[str]:
    return [declared.name for declared, info in setting_fields(TrainConfig) if info.is_path]
