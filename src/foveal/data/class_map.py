"""Which class of a data set each class of a model counts as: a YAML file ``model class: data class``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..config import read_yaml
from ..errors import ConfigError, nearest


def read_class_map(path: str | Path, own: Sequence[str], wanted: Sequence[str]) -> NDArray[np.int64]:
    """Index into ``wanted``, the data's classes, of each of the model's ``own``: ``(own classes,)``.

    Raises:
        ConfigError: the file cannot be read, a name is unknown, or one of the model's classes is missing.
    """
    mapping = read_yaml(path)
    for name, target in mapping.items():
        if name not in own:
            raise ConfigError(f"{path}: the model has no class {name!r}{nearest(name, own)}")
        if target not in wanted:
            raise ConfigError(f"{path}: the data has no class {target!r}{nearest(str(target), wanted)}")
    if missing := [name for name in own if name not in mapping]:
        raise ConfigError(f"{path}: no data class for {abbreviate(missing)}")
    return np.array([wanted.index(mapping[name]) for name in own])


def abbreviate(names: Sequence[str]) -> str:
    """The first of many names, for a message."""
    return ", ".join(names[:4]) + (f", ... ({len(names)})" if len(names) > 4 else "")
