"""Read frozen dataclasses from YAML files and from options: every key is checked, an unknown one is an error."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import numbers
import re
import reprlib
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar

import yaml

from .errors import ConfigError, nearest

if typing.TYPE_CHECKING:
    from yaml import SafeLoader as _SafeLoader
else:  # the one in C is faster, and not part of every build
    _SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

T = TypeVar("T")

#: Sides of an image as text: "HEIGHTxWIDTH", or that of a square.
_SIDES = re.compile(r"([1-9]\d{0,8})(?:(?:\s*[xX*,]\s*|\s+)([1-9]\d{0,8}))?", re.ASCII)
_MAX_BYTES = 1 << 20  # of a file
_MAX_SIZE = 8 << 20  # of the values with their aliases written out: _VALUE for each, and its characters
_VALUE = 128  # so that there are at most 65,536 values, which take about a second
_MAX_DEPTH = 50
_MAX_DIGITS = 50  # characters of a number or date: Python's time for integers grows with the square of their length


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping.

    Raises:
        ConfigError: the file is missing, too large or not valid YAML, is nested too deeply or becomes too large by its
            aliases, a key occurs twice, or the top level is not a mapping.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ConfigError(f"{path}: a file of settings of more than {_MAX_BYTES >> 10} KiB")
        text = content.decode("utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL character in the path
        raise ConfigError(f"{path}: {_one_line(error)}") from error
    data = parse_yaml(text, str(path))
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected 'key: value' lines at the top level")
    return {str(key): value for key, value in data.items()}


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML as plain values; ``source`` is its name in errors.

    Raises:
        ConfigError: as :func:`read_yaml`.
    """
    try:
        return yaml.load(text, _Loader)
    except (ValueError, OverflowError, RecursionError, yaml.YAMLError) as error:  # ValueError: no valid date
        raise ConfigError(f"{source}: {_one_line(error)}") from error


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


def shown(value: object) -> str:
    """``repr`` of a value of any size for an error message: of long and nested values only the first part."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return f"a {type(value).__name__}"


def _one_line(error: Exception) -> str:
    text = (isinstance(error, OSError) and error.strerror) or str(error)
    text = " ".join(text.split()).replace(' in "<unicode string>", line', " at line")  # PyYAML's name of any text
    return text if len(text) < 500 else f"{text[:500]} ..."


class _Loader(_SafeLoader):
    """A loader of plain values that refuses repeated keys, of which PyYAML would silently take the last.

    It also refuses what takes long to expand or to convert.
    """

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _check_size(node, {}, 0)
        return node

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        if node.tag in _NUMBERS and len(node.value) > _MAX_DIGITS:
            raise _refused(f"a number of {len(node.value)} characters", node)
        return super().construct_scalar(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise _refused(f"key {shown(key.value)} is there twice", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_NUMBERS = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp"))


def _refused(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _check_size(node: yaml.Node, sizes: dict[yaml.Node, int], depth: int) -> int:
    """Size of the values below a node, aliases written out; ``sizes`` has those that are known.

    Raises:
        ConstructorError: it is above the limit, the nodes are nested too deeply, or a node contains itself.
    """
    if depth > _MAX_DEPTH:
        raise _refused(f"more than {_MAX_DEPTH} levels", node)
    if node in sizes:
        if not sizes[node]:
            raise _refused("a value that contains itself", node)
        return sizes[node]
    sizes[node] = 0  # until it is known
    if isinstance(node, yaml.ScalarNode):
        size = _VALUE + len(node.value)
    else:
        children = node.value if isinstance(node, yaml.SequenceNode) else itertools.chain.from_iterable(node.value)
        size = _VALUE + sum(_check_size(child, sizes, depth + 1) for child in children)
    if size > _MAX_SIZE:
        raise _refused(f"more than {_MAX_SIZE // _VALUE:,} values, aliases written out", node)
    sizes[node] = size
    return size


def build_config(cls: type[T], values: dict[str, Any], source: str = "options") -> T:
    """Build dataclass ``cls`` from ``values``, with checked names and types.

    Raises:
        ConfigError: a key is unknown (the message has the nearest valid one) or missing, or a value has another type.
    """
    hints = typing.get_type_hints(cls)
    converted = {}
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(f"{source}: unknown key {shown(key)}{nearest(key, hints)}")
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
        converted = _convert(values[name], hints[name], f"{source}: {name}")
        if isinstance(values[name], str) and not isinstance(converted, str):
            raise ConfigError(f"{source}: {name}={values[name]!r} is a text: give a number (in YAML 1.0e-5, not 1e-5)")


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
        *others, last = _candidates(value, [arg for arg in args if arg is not type(None)])
        for arg in others:
            with suppress(ConfigError):
                return _convert(value, arg, where)
        return _convert(value, last, where)
    if origin is Literal:
        if value not in args:
            name = value if isinstance(value, str) else shown(value)
            raise ConfigError(f"{where}={shown(value)}{nearest(name, map(str, args))}")
        return value
    if origin in (tuple, Sequence):
        return _convert_list(value, args if origin is tuple else (*args, Ellipsis), where)
    if origin is dict:
        return _convert_mapping(value, args, where)
    return _convert_plain(value, origin or hint, where)


def _candidates(value: Any, args: Sequence[Any]) -> Sequence[Any]:
    """Those of several types that a value may have: for a list or a mapping the one of this kind, if there is one."""
    kind = tuple if isinstance(value, list | tuple) else dict if isinstance(value, dict) else None
    return [arg for arg in args if kind and typing.get_origin(arg) is kind] or args


def _convert_list(value: Any, args: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{where}: expected a list, got {shown(value)}")
    if args[-1] is Ellipsis:
        return tuple(_convert(item, args[0], where) for item in value)
    if len(value) != len(args):
        raise ConfigError(f"{where}: expected {len(args)} values, got {len(value)}")
    return tuple(_convert(item, arg, where) for item, arg in zip(value, args, strict=True))


def _convert_mapping(value: Any, args: tuple[Any, ...], where: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected a mapping such as {{name: value}}, got {shown(value)}")
    keys = [_convert(key, args[0], f"{where} key") for key in value]
    return {key: _convert(item, args[1], f"{where}.{key}") for key, item in zip(keys, value.values(), strict=True)}


def _convert_plain(value: Any, kind: Any, where: str) -> Any:
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        with suppress(ValueError):
            value = float(value)  # YAML reads 1e-3 as text
    if kind is float and isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: expected a finite number, got {shown(value)}")
    accepted = numbers.Integral if kind is int else kind  # NumPy's integers, too
    if isinstance(value, accepted) and (kind is bool or not isinstance(value, bool)):
        return value
    raise ConfigError(f"{where}: expected {getattr(kind, '__name__', kind)}, got {shown(value)}")


def to_dict(config: Any) -> dict[str, Any]:
    """Return a dataclass as plain values for YAML: tuples at any depth become lists."""
    return _tuples_to_lists(dataclasses.asdict(config))


def _tuples_to_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples_to_lists(item) for key, item in value.items()}
    return [_tuples_to_lists(item) for item in value] if isinstance(value, list | tuple) else value


def parse_sides(value: Any) -> Any:
    """(H, W) of ``512``, ``"512"``, ``"512x1024"``, ``"512 1024"`` or ``"512,1024"``; anything else as it is."""
    match = _SIDES.fullmatch(str(value)) if isinstance(value, int | str) else None
    return (int(match[1]), int(match[2] or match[1])) if match else value
