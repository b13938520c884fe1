"""The settings of a training run: the common ones, and those of each task."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass
from pathlib import Path
from typing import Any

from ..config import build_config, read_yaml, to_dict
from ..errors import ConfigError
from ..task import TASKS
from .classify_settings import ClassifySettings
from .prompt_settings import PromptSettings
from .segment_settings import SegmentSettings
from .settings import CommonSettings, Setting, check_needs, check_ranges, default_of, out_of_range, setting_fields
from .upscale_settings import UpscaleSettings

#: The settings class of each task, by the task's name.
TASK_SETTINGS: Mapping[str, type[CommonSettings]] = {
    "segment": SegmentSettings,
    "classify": ClassifySettings,
    "upscale": UpscaleSettings,
    "prompt": PromptSettings,
}


_CROPS = ("crop", "late_crop")  # settings of which one number is the side of a square
_FINE = 0.1  # default of backbone_lr_scale where classes are learnt from weights


@dataclass(frozen=True)
class TrainConfig(PromptSettings, UpscaleSettings, ClassifySettings, SegmentSettings):
    """The settings of one training run.

    Every field is a keyword argument of :func:`foveal.train`, a key of a recipe and, as ``--set.NAME``, an option of
    ``foveal train``. ``foveal train --help-all`` lists the fields with their meaning, default and valid range; they are
    declared in :class:`~foveal.training.settings.CommonSettings` and, those of one task, in the settings class of the
    task. Fields of other tasks must have their defaults.

    Raises:
        ConfigError: a value is out of range, belongs to another task, or needs another setting that is empty.
    """

    def __post_init__(self) -> None:
        for name in _CROPS:
            object.__setattr__(self, name, _square(getattr(self, name)))
        check_ranges(self)
        if self.accumulate > self.batch_size:
            raise out_of_range(self, "accumulate", f" ({self.batch_size})")
        if 0 < self.samples_per_epoch < self.batch_size:
            raise out_of_range(self, "samples_per_epoch", f" ({self.batch_size})")
        self._refuse_settings_of_other_tasks()
        check_needs(self)

    def _refuse_settings_of_other_tasks(self) -> None:
        for task in TASK_SETTINGS:
            for declared, info in own_fields(task):
                value = getattr(self, declared.name)
                if task != self.task and not info.ignored_by_other_tasks and value != default_of(declared):
                    raise ConfigError(f"{declared.name}={value!r} is for {task!r}, not {self.task!r}: leave it out")


def own_fields(task: str) -> Iterator[tuple[Field[Any], Setting]]:
    """The settings of one task that are not common ones, in order."""
    common = {declared.name for declared, _ in setting_fields(CommonSettings)}
    return ((declared, info) for declared, info in setting_fields(TASK_SETTINGS[task]) if declared.name not in common)


def resolve_config(config: TrainConfig | str | Path | None, overrides: dict[str, Any]) -> TrainConfig:
    """Settings from an object or a YAML file (None: the defaults), some of them replaced by ``overrides``.

    Raises:
        ConfigError: unknown setting, value of another type, or see :class:`TrainConfig`.
    """
    if isinstance(config, str | Path):
        return build_settings(read_yaml(config) | overrides, str(config))
    return build_settings((to_dict(config) if config else {}) | overrides)


def build_settings(values: dict[str, Any], source: str = "options") -> TrainConfig:
    """Settings from plain values.

    Raises:
        ConfigError: as :func:`resolve_config`.
    """
    squares = {name: _square(values[name]) for name in _CROPS if name in values}
    return build_config(TrainConfig, values | squares, source)


def _square(side: Any) -> Any:
    """``(side, side)`` of a whole number; anything else as it is."""
    return (side, side) if isinstance(side, int) and not isinstance(side, bool) else side


def scale_backbone_lr(config: TrainConfig) -> TrainConfig:
    """Set ``backbone_lr_scale`` where it is not set.

    A new head needs the default learning rate, which destroys in a few steps what the backbone has learnt. With another
    lr, the run does what its settings say.
    """
    if config.backbone_lr_scale is not None:
        return config
    default_lr = next(default_of(declared) for declared, _ in setting_fields(config) if declared.name == "lr")
    fine = config.weights and TASKS[config.task].has_classes and config.lr == default_lr
    return dataclasses.replace(config, backbone_lr_scale=_FINE if fine else 1.0)


def portable_settings(config: TrainConfig) -> dict[str, Any]:
    """The settings as plain values for a checkpoint; of paths only the last part, as they mean nothing elsewhere."""
    paths = (declared.name for declared, info in setting_fields(config) if info.is_path)
    return to_dict(config) | {name: Path(getattr(config, name)).name for name in paths}
