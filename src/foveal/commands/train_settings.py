"""The settings of training as text for the command line, from their declarations; needs neither torch nor numpy."""

from __future__ import annotations

import shutil
import textwrap
import typing
from collections.abc import Iterable
from dataclasses import Field
from types import UnionType
from typing import Any, Literal

from ..training.common_settings import CommonSettings
from ..training.config import TASK_SETTINGS, TrainConfig, own_fields
from ..training.settings import Setting, default_of, setting_fields

#: The settings that are options of their own. All settings can be given as --set.NAME too.
OPTIONS = {
    "model": "--model",
    "task": "--task",
    "in_chans": "--in-chans",
    "weights": "--weights",
    "tune": "--tune",
    "val_split": "--val-split",
    "epochs": "--epochs",
    "batch_size": "--batch-size",
    "crop": "--crop",
    "lr": "--lr",
    "weight_decay": "--weight-decay",
    "class_weights": "--class-weights",
    "eval_every": "--eval-every",
    "patience": "--patience",
    "precision": "--precision",
    "device": "--device",
    "workers": "--num-workers",
    "seed": "--seed",
    "fsdp": "--fsdp",
}

SETTINGS = [declared.name for declared, _ in setting_fields(TrainConfig)]  #: names of all settings

_PLAIN_TYPES = {int: "integer", float: "number", str: "text", bool: "true or false", Any: "any value"}
_WIDEST = 110


def describe_option(name: str) -> str:
    """Help text of a setting's option: meaning, valid range, default."""
    declared, info = next(each for each in setting_fields(TrainConfig) if each[0].name == name)
    return " ".join([info.help, *_facts(declared, info)])


def list_settings() -> str:
    """Every setting, the common ones first, then those of each task."""
    width = min(_WIDEST, shutil.get_terminal_size().columns)
    sections = [_section("Settings of every task", setting_fields(CommonSettings), width)]
    sections += [_section(f"Settings of --task {task}", own_fields(task), width) for task in TASK_SETTINGS]
    return "\n\n".join(sections)


def _section(title: str, settings: Iterable[tuple[Field[Any], Setting]], width: int) -> str:
    hints = typing.get_type_hints(TrainConfig)
    lines = [title]
    for declared, info in settings:
        names = ", ".join([*([OPTIONS[declared.name]] if declared.name in OPTIONS else []), f"--set.{declared.name}"])
        kind = f"Type: {describe_type(hints[declared.name])}."
        text = " ".join([info.help, kind, *_facts(declared, info)])
        lines += ["", f"  {names}", textwrap.fill(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)]
    return "\n".join(lines)


def _facts(declared: Field[Any], info: Setting) -> list[str]:
    """Sentences on the valid range, on what the setting needs, and on its default."""
    facts = [f"Valid: {info.valid.text}."] if info.valid else []
    facts += [f"One of {', '.join(filter(None, info.names))}."] if info.names else []
    facts += [f"Needs {info.needs}."] if info.needs else []
    default = default_of(declared)
    return facts if default in ("", {}, None) else [*facts, f"Default: {_describe_value(default)}."]


def _describe_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {item}' for key, item in value.items())}}}"
    return str(value)


def describe_type(hint: Any) -> str:
    """A type annotation in words: "integer", "[number, number]", "{text: any value}", "one of l1, charbonnier"."""
    if hint in _PLAIN_TYPES:
        return _PLAIN_TYPES[hint]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if type(None) in args:
        return describe_type(args[0])
    if origin in (typing.Union, UnionType):
        return " or ".join(map(describe_type, args))
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin is tuple:
        return f"[{', '.join('...' if arg is Ellipsis else describe_type(arg) for arg in args)}]"
    if typing.get_origin(args[0]) is Literal:
        return f"{{name: {describe_type(args[1])}}} with names of {', '.join(typing.get_args(args[0]))}"
    return f"{{{describe_type(args[0])}: {describe_type(args[1])}}}"
