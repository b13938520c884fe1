"""How a setting is declared: default, meaning and valid range stand together, for the checks, errors and help texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from ..errors import ConfigError, nearest

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """The valid values of a setting.

    Attributes:
        text: the range in words, such as "1 or more", for help texts and after "give" in errors.
        contains: whether a value lies in the range.
    """

    text: str
    contains: Callable[[Any], bool]


@dataclass(frozen=True)
class Setting:
    """The properties of a setting in addition to its name, type and default: the metadata of a dataclass field.

    Attributes:
        help: meaning, whole sentences.
        valid: range of valid values; None: every value of the type.
        needs: name of another setting that must not be empty where this one is set.
        is_path: whether the value may be a path on this machine. Checkpoints record only its last part.
        resumable: whether a resumed run may have another value than the run had before.
        names: valid values of a setting that is a name; empty: every value of the type.
        phased: whether a new phase of a run may have another value.
        runs_code: whether the value names code to run, which no file may do.
    """

    help: str
    valid: Range | None = None
    needs: str = ""
    is_path: bool = False
    resumable: bool = False
    names: tuple[str, ...] = ()
    phased: bool = False
    runs_code: bool = False


def setting(default: T, help: str, valid: Range | None = None, **more: Any) -> T:
    """Declare a field of a settings class.

    Args:
        default: value of a run that does not set it.
        help: meaning of the setting, whole sentences.
        valid: range of valid values.
        **more: further attributes of :class:`Setting`.
    """
    metadata = {_KEY: Setting(help, valid, **more)}
    if isinstance(default, dict):
        return cast(T, field(default_factory=lambda: dict(default), metadata=metadata))
    return field(default=default, metadata=metadata)


_KEY = "setting"


def setting_fields(cls: Any) -> Iterator[tuple[dataclasses.Field[Any], Setting]]:
    """The fields of a settings class or object, in order, with their declarations."""
    for each in dataclasses.fields(cls):
        yield each, each.metadata[_KEY]


def resumable_settings(settings: Any) -> set[str]:
    """The names of the settings that a resumed run may change without a new phase, of a settings class or object."""
    return {declared.name for declared, info in setting_fields(settings) if info.resumable}


def default_of(declared: dataclasses.Field[Any]) -> Any:
    """The default of a field, whether it is a value or a factory."""
    if declared.default_factory is not dataclasses.MISSING:
        return declared.default_factory()
    return declared.default


def at_least(low: int | float) -> Range:
    """Numbers from ``low`` up."""
    return Range(f"{low} or more", lambda value: value >= low)


def above(low: int | float) -> Range:
    """Numbers above ``low``."""
    return Range(f"a number above {low}", lambda value: value > low)


def between(low: int | float, high: int | float) -> Range:
    """Numbers from ``low`` to ``high``, both included."""
    return Range(f"{low} to {high}", lambda value: low <= value <= high)


def below(high: int | float, *, low: int | float = 0) -> Range:
    """Numbers from ``low``, which is included, to ``high``, which is not."""
    return Range(f"at least {low} and below {high}", lambda value: low <= value < high)


def out_of_range(settings: Any, name: str, more: str = "") -> ConfigError:
    """The error for a setting outside its valid range; ``more`` is added to the range."""
    valid = next(info.valid for declared, info in setting_fields(settings) if declared.name == name)
    assert valid is not None
    return ConfigError(f"{name}={getattr(settings, name)!r} is out of range: give {valid.text}{more}")


def check_ranges(settings: Any) -> None:
    """Check every setting against its own range.

    Raises:
        ConfigError: a value is out of range.
    """
    for declared, info in setting_fields(settings):
        value = getattr(settings, declared.name)
        if info.names and value not in info.names:
            raise ConfigError(f"{declared.name}={value!r}{nearest(str(value), info.names)}")
        if info.valid is not None and value is not None and not info.valid.contains(value):
            raise out_of_range(settings, declared.name)


def check_needs(settings: Any) -> None:
    """Check that every setting that was set has the other setting that it needs.

    Raises:
        ConfigError: that one is empty.
    """
    for declared, info in setting_fields(settings):
        value = getattr(settings, declared.name)
        if info.needs and value != default_of(declared) and not getattr(settings, info.needs):
            raise ConfigError(
                f"{declared.name}={value!r} needs {info.needs}: give {info.needs} too, or leave {declared.name} out"
            )
