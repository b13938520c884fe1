"""Map the classes of a model to the classes of a data set, by a YAML file of ``model class: data class``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..config import read_yaml, shown
from ..errors import ConfigError, nearest

MANY_ABSENT = 20  #: classes; if more do not occur in data, tables and messages give their number


def read_class_map(
    path: str | Path, model_names: Sequence[str], data_names: Sequence[str], partial: bool = False
) -> NDArray[np.int64]:
    """Read a class map.

    Args:
        path: YAML file; each key is a class of the model, each value a class of the data.
        model_names: classes of the model.
        data_names: classes of the data.
        partial: whether classes of the model may be missing, but not all.

    Returns:
        For each class of the model, the index of its class in ``data_names``: ``(model classes,)``; -1 if it is
        missing.

    Raises:
        ConfigError: the file cannot be read, a name is unknown, or a class of the model is missing.
    """
    mapping = read_yaml(path)
    known, index_of = set(model_names), {name: place for place, name in enumerate(data_names)}
    for name, target in mapping.items():
        if name not in known:
            raise ConfigError(f"{path}: the model has no class {shown(name)}{nearest(name, model_names)}")
        if not isinstance(target, str) or target not in index_of:
            wrong = target if isinstance(target, str) else shown(target)
            raise ConfigError(f"{path}: the data has no class {shown(target)}{nearest(wrong, data_names)}")
    missing = [name for name in model_names if name not in mapping]
    if missing and not (partial and mapping):
        raise ConfigError(f"{path}: no data class for {abbreviate(missing)}; add a line 'model class: data class' each")
    return np.array([index_of[mapping[name]] if name in mapping else -1 for name in model_names])


def abbreviate(names: Sequence[str]) -> str:
    """The first four of many names and their number, for messages."""
    return ", ".join(names[:4]) + (f", ... ({len(names)})" if len(names) > 4 else "")
