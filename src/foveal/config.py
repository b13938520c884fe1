"""Read frozen dataclasses from YAML files and from options: every key is checked, an unknown one is an error."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar

import yaml

from .errors import ConfigError, nearest

T = TypeVar("T")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping.

    Raises:
        ConfigError: the file is missing or is not valid YAML, a key occurs twice, or the top level is not a mapping.
    """
    try:
        data = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: not UTF-8, or no valid date
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected 'key: value' lines at the top level")
    return {str(key): value for key, value in data.items()}


class _Loader(yaml.SafeLoader):
    """A loader of plain values that refuses repeated keys, of which PyYAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        repeated = next((key for index, key in enumerate(keys) if key in keys[:index]), None)
        if repeated is not None:
            raise yaml.constructor.ConstructorError(None, None, f"key {repeated!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def build_config(cls: type[T], values: dict[str, Any], source: str = "options") -> T:
    """Build dataclass ``cls`` from ``values``, with checked names and types.

    Raises:
        ConfigError: a key is unknown (the message has the nearest valid one) or missing, or a value has another type.
    """
    hints = typing.get_type_hints(cls)
    converted = {}
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(f"{source}: unknown key {key!r}{nearest(key, hints)}")
        converted[key] = _convert(value, hints[key], f"{source}: {key}")
    missing = [key for key in _required_keys(cls) if key not in converted]
    if missing:
        raise ConfigError(f"{source}: missing key {', '.join(map(repr, missing))}")
    return cls(**converted)


def check_arguments(function: Any, values: Mapping[str, Any], source: str) -> None:
    """Check the types of the keyword arguments of a function or class that have type hints; others are not checked.

    Raises:
        ConfigError: a value has another type.
    """
    while isinstance(function, functools.partial):
        function = function.func
    hints = typing.get_type_hints(function.__init__ if isinstance(function, type) else function)
    for name in values.keys() & hints.keys():
        _convert(values[name], hints[name], f"{source}: {name}")


def _required_keys(cls: Any) -> list[str]:
    unset = dataclasses.MISSING
    return [f.name for f in dataclasses.fields(cls) if f.default is unset and f.default_factory is unset]


def _convert(value: Any, hint: Any, where: str) -> Any:
    """Convert ``value`` to the type ``hint`` where nothing is lost: a list to a tuple, an integer to a float."""
    if hint is Any:
        return value
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        *others, last = (arg for arg in args if arg is not type(None))
        for arg in others:
            with suppress(ConfigError):
                return _convert(value, arg, where)
        return _convert(value, last, where)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{where}={value!r:.80}{nearest(str(value), map(str, args))}")
        return value
    if origin in (tuple, Sequence):
        return _convert_list(value, args if origin is tuple else (*args, Ellipsis), where)
    if origin is dict:
        return _convert_mapping(value, args, where)
    return _convert_plain(value, origin or hint, where)


def _convert_list(value: Any, args: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{where}: expected a list, got {value!r:.80}")
    if args[-1] is Ellipsis:
        return tuple(_convert(item, args[0], where) for item in value)
    if len(value) != len(args):
        raise ConfigError(f"{where}: expected {len(args)} values, got {len(value)}")
    return tuple(_convert(item, arg, where) for item, arg in zip(value, args, strict=True))


def _convert_mapping(value: Any, args: tuple[Any, ...], where: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected a mapping such as {{name: value}}, got {value!r:.80}")
    keys = [_convert(key, args[0], f"{where} key") for key in value]
    return {key: _convert(item, args[1], f"{where}.{key}") for key, item in zip(keys, value.values(), strict=True)}


def _convert_plain(value: Any, kind: Any, where: str) -> Any:
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        with suppress(ValueError):
            value = float(value)  # YAML reads 1e-3 as text
    if kind is float and isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: expected a finite number, got {value!r:.80}")
    accepted = numbers.Integral if kind is int else kind  # NumPy's integers, too
    if isinstance(value, accepted) and (kind is bool or not isinstance(value, bool)):
        return value
    raise ConfigError(f"{where}: expected {getattr(kind, '__name__', kind)}, got {value!r:.80}")


def to_dict(config: Any) -> dict[str, Any]:
    """Return a dataclass as plain values for YAML: tuples at any depth become lists."""
    return _tuples_to_lists(dataclasses.asdict(config))


def _tuples_to_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples_to_lists(item) for key, item in value.items()}
    return [_tuples_to_lists(item) for item in value] if isinstance(value, list | tuple) else value
