"""Read a recipe: a YAML file of settings, whose relative paths begin at its own folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..config import read_yaml
from ..errors import ConfigError, nearest


def read_recipe(file: str | Path, path_settings: Iterable[str]) -> dict[str, Any]:
    """Read the settings of a recipe.

    Args:
        file: the recipe: a path, or the name of a recipe of the package, such as ``camvid_b0``.
        path_settings: names of the settings that may be paths.

    Raises:
        ConfigError: there is no such recipe, the file is not valid YAML, or a path exists both beside the recipe and in
            the working directory.
    """
    file = find_recipe(file)
    values = read_yaml(file)
    for name in path_settings:
        if isinstance(value := values.get(name), str) and value:
            values[name] = _resolve(value, Path(file), name)
    return values


def recipes() -> dict[str, Path]:
    """The recipes of the package by name; of a checkout, those in its folder ``recipes``."""
    package = Path(__file__).parents[1]
    folder = next((each for each in (package / "recipes", package.parents[1] / "recipes") if each.is_dir()), None)
    return {} if folder is None else {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(file: str | Path) -> Path:
    """The path of a recipe: a file, or one of the package by its name.

    Raises:
        ConfigError: a name that no recipe has; the message has the nearest one.
    """
    path = Path(file)
    if path.suffix or len(path.parts) != 1 or path.exists():
        return path
    known = recipes()
    if path.name not in known:
        raise ConfigError(f"no file {path} and no recipe of that name{nearest(path.name, known)}")
    return known[path.name]


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
