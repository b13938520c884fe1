"""The settings of a training run: the common ones, and those of each task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass
from pathlib import Path
from typing import Any

from ..config import build_config, to_dict
from ..errors import ConfigError
from .classify_settings import ClassifySettings
from .prompt_settings import PromptSettings
from .recipe import read_recipe
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

    Relative paths in the file begin at its folder; those that do not exist there, at the working directory.

    Raises:
        ConfigError: unknown setting, value of another type, or see :class:`TrainConfig`.
    """
    if isinstance(config, str | Path):
        return build_config(TrainConfig, read_recipe(config, _path_settings()) | overrides, str(config))
    return build_config(TrainConfig, (to_dict(config) if config else {}) | overrides)


def portable_settings(config: TrainConfig) -> dict[str, Any]:
    """The settings as plain values for a checkpoint; of paths only the last part, as they mean nothing elsewhere."""
    return to_dict(config) | {name: Path(getattr(config, name)).name for name in _path_settings()}


def _path_settings() -> list[str]:
    return [declared.name for declared, info in setting_fields(TrainConfig) if info.is_path]
