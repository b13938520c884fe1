"""Configuration: frozen dataclasses, read from YAML and from options, where an unknown key is an error."""

from __future__ import annotations

import dataclasses
import math
import typing
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
        ConfigError: missing file, bad YAML, a key that is there twice, or something else at the top level.
    """
    try:
        data = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: no UTF-8, or no such date
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected 'key: value' lines at the top level")
    return {str(key): value for key, value in data.items()}


class _Loader(yaml.SafeLoader):
    """Plain values only, and no key twice, where PyYAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for index, key in enumerate(keys) if key in keys[:index]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"key {twice!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def build_config(cls: type[T], values: dict[str, Any], source: str = "options") -> T:
    """Build dataclass ``cls`` from ``values``, checking names and types.

    Raises:
        ConfigError: unknown key (with the nearest valid one), or a value of another type.
    """
    hints = typing.get_type_hints(cls)
    checked = {}
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(f"{source}: unknown key {key!r}{nearest(key, hints)}")
        checked[key] = _coerce(value, hints[key], f"{source}: {key}")
    missing = [key for key in _required(cls) if key not in checked]
    if missing:
        raise ConfigError(f"{source}: missing key {', '.join(map(repr, missing))}")
    return cls(**checked)


def _required(cls: Any) -> list[str]:
    unset = dataclasses.MISSING
    return [f.name for f in dataclasses.fields(cls) if f.default is unset and f.default_factory is unset]


def _coerce(value: Any, hint: Any, where: str) -> Any:
    """Return ``value`` as ``hint`` wants it; only lossless conversions (list to tuple, int to float)."""
    if hint is Any:
        return value
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return _coerce(value, next(a for a in args if a is not type(None)), where)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{where}={value!r}{nearest(str(value), map(str, args))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        if args[-1] is Ellipsis:
            return tuple(_coerce(item, args[0], where) for item in value)
        if len(value) != len(args):
            raise ConfigError(f"{where}: expected {len(args)} values, got {len(value)}")
        return tuple(_coerce(item, arg, where) for item, arg in zip(value, args, strict=True))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected a mapping such as {{name: value}}, got {value!r}")
        keys = [_coerce(key, args[0], f"{where} key") for key in value]
        return {key: _coerce(item, args[1], f"{where}.{key}") for key, item in zip(keys, value.values(), strict=True)}
    if hint is float and isinstance(value, int | str) and not isinstance(value, bool):
        with suppress(ValueError):
            value = float(value)  # YAML reads 1e-3 as text
    if hint is float and isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: expected a finite number, got {value!r}")
    plain = origin or hint
    if isinstance(value, plain) and (plain is bool or not isinstance(value, bool)):
        return value
    raise ConfigError(f"{where}: expected {getattr(plain, '__name__', plain)}, got {value!r}")


def to_dict(config: Any) -> dict[str, Any]:
    """The dataclass as plain YAML-friendly values (tuples become lists, at any depth)."""
    return _listed(dataclasses.asdict(config))


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value
