"""What is measured: a candidate, named by its reference, and the settings that it runs with."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import parse_sides
from ..errors import ConfigError, nearest
from ..prediction.runtimes import check_names
from ..task import find_task

# The revision of a hub id, as in "owner/name@revision", has no "=".
_OWN_SETTINGS = re.compile(r"(?P<ref>.+)@(?P<settings>\w+=[^@]*)", re.DOTALL)
#: Part of a promptable model that answers prompts; its times are compared with those of the same part only.
CLICK = "click"


@dataclass(frozen=True)
class Candidate:
    """A candidate and its settings; ``None``, and "auto", is what nobody asked for.

    Attributes:
        text: as the user wrote it: ``REF``, or ``REF@NAME=VALUE,NAME=VALUE``.
        ref: reference that :func:`foveal.load` takes, name of an architecture, or ``module:callable``.
        task: task that a model by name is built for.
        size: (H, W) of the input.
        batch: images per run.
        device: device that runs it.
        dtype: type to compute in.
        runtime: what runs it.
        threads: threads of its runtime.
    """

    text: str
    ref: str
    task: str | None = None
    size: tuple[int, int] | None = None
    batch: int | None = None
    device: str = "cpu"
    dtype: str = "auto"
    runtime: str = "auto"
    threads: int | None = None

    def replace(self, **settings: Any) -> Candidate:
        """A copy with other settings."""
        return dataclasses.replace(self, **settings)

    def asks_for(self, setting: str) -> bool:
        """Whether somebody asked for a value of a setting other than what every candidate has."""
        return getattr(self, setting) not in (None, "auto", "cpu", "float32")


def parse_candidate(text: str, defaults: Mapping[str, Any]) -> Candidate:
    """Read a candidate; its own settings take precedence over those for all.

    Args:
        text: ``REF`` or ``REF@NAME=VALUE,...``, with the names task, size, batch, device, dtype, runtime and threads.
        defaults: settings for all candidates.

    Raises:
        ConfigError: an unknown setting, or an impossible value.
    """
    match = None if Path(text).exists() else _OWN_SETTINGS.fullmatch(text)
    if match is None:
        return Candidate(text, text, **defaults)
    own: dict[str, Any] = {}
    for setting in match["settings"].split(","):
        name, equals, value = setting.partition("=")
        if not equals or name not in _READ:
            raise ConfigError(f"{text}: unknown setting {setting!r}{nearest(name, _READ)}")
        if name in own:
            raise ConfigError(f"{text}: {name} is given twice")
        own[name] = _read(text, name, value)
    candidate = Candidate(text, match["ref"], **{**defaults, **own})
    try:
        check_settings(candidate)
    except ConfigError as error:
        raise ConfigError(f"{text}: {error}") from None
    return candidate


def check_settings(candidate: Candidate) -> None:
    """Check the values that can be checked before anything is loaded.

    Raises:
        ConfigError: an unknown name or a number that is not positive.
    """
    check_names(candidate.runtime, candidate.dtype)
    if candidate.task is not None:
        find_task(candidate.task)
    for name in ("batch", "threads"):
        value = getattr(candidate, name)
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value}: give 1 or more")
    if candidate.size is not None and min(candidate.size) < 1:
        raise ConfigError(f"size={candidate.size}: height and width are positive")


def _read(text: str, name: str, value: str) -> Any:
    try:
        return _READ[name](value)
    except ValueError:
        form = "HEIGHTxWIDTH, for example 512x1024, or the side of a square" if name == "size" else "a whole number"
        raise ConfigError(f"{text}: {name}={value}: give {form}") from None


def _size(value: str) -> tuple[int, int]:
    sides = parse_sides(value)
    if not isinstance(sides, tuple):
        raise ValueError(value)
    return sides


#: Settings that a candidate may have of its own, and how their text is read.
_READ = {"task": str, "size": _size, "batch": int, "device": str, "dtype": str, "runtime": str, "threads": int}
