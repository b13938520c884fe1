"""Read a recipe: a YAML file of settings, whose relative paths begin at its own folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..config import read_yaml
from ..errors import ConfigError


def read_recipe(file: str | Path, path_settings: Iterable[str]) -> dict[str, Any]:
    """Read the settings of a recipe.

    Args:
        file: the recipe.
        path_settings: names of the settings that may be paths.

    Raises:
        ConfigError: the file is not valid YAML, or a path exists both beside the recipe and in the working directory.
    """
    values = read_yaml(file)
    for name in path_settings:
        if isinstance(value := values.get(name), str) and value:
            values[name] = _resolve(value, Path(file), name)
    return values


def _resolve(value: str, recipe: Path, name: str) -> str:
    """The path beside the recipe if it exists; otherwise ``value``, a path in the working directory or no path."""
    beside, here = recipe.parent / value, Path(value)
    try:
        is_folder = beside.is_dir() and ("/" in value or any(beside.glob("*.safetensors")))  # else the name of weights
        if not (is_folder or beside.is_file()):
            return value
        if here.exists() and not here.samefile(beside):
            raise ConfigError(
                f"{recipe}: {name}: {value} exists in the recipe's folder and in the working directory: write the whole"
                " path of the one to use"
            )
    except (OSError, ValueError):  # not a possible path
        return value
    return str(beside)
