"""Sizes of a variant that options of ``create_model`` replace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from ..errors import ConfigError

Config = TypeVar("Config", bound=Any)  #: a dataclass


def replace_sizes(config: Config, *, least_depth: int = 1, **sizes: int | Sequence[int] | None) -> Config:
    """Return the dataclass ``config`` with every size that is not ``None`` replaced.

    Args:
        config: sizes as published.
        least_depth: smallest number of blocks of a stage.
        **sizes: fields of ``config``, numbers or as many numbers as it has.

    Raises:
        ConfigError: a size is not positive, or there are more or fewer numbers than in ``config``.
    """
    for name, size in sizes.items():
        if size is None:
            continue
        published = getattr(config, name)
        count = len(published) if isinstance(published, tuple) else 0
        values = list(size) if isinstance(size, Sequence) and not isinstance(size, str) else [size]
        if isinstance(size, Sequence) != bool(count) or len(values) != (count or 1):
            raise ConfigError(f"{name}={size!r}: give {f'{count} numbers' if count else 'one number'}")
        least = least_depth if name == "depths" else 1
        if not all(type(value) is int and value >= least for value in values):
            valid = "positive whole numbers" if least else "whole numbers, 0 or more"
            raise ConfigError(f"{name}={size!r}: give {valid}")
        config = replace(config, **{name: tuple(values) if count else values[0]})
    return config
