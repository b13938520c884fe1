"""Map the classes of a model to the classes of a data set, by a YAML file of ``model class: data class``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..config import read_yaml
from ..errors import ConfigError, nearest


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
    for name, target in mapping.items():
        if name not in model_names:
            raise ConfigError(f"{path}: the model has no class {name!r}{nearest(name, model_names)}")
        if target not in data_names:
            raise ConfigError(f"{path}: the data has no class {target!r}{nearest(str(target), data_names)}")
    missing = [name for name in model_names if name not in mapping]
    if missing and not (partial and mapping):
        raise ConfigError(f"{path}: no data class for {abbreviate(missing)}; add a line 'model class: data class' each")
    return np.array([data_names.index(mapping[name]) if name in mapping else -1 for name in model_names])


def abbreviate(names: Sequence[str]) -> str:
    """The first four of many names and their number, for messages."""
    return ", ".join(names[:4]) + (f", ... ({len(names)})" if len(names) > 4 else "")
