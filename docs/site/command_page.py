"""Write docs/commands.md from the parsers of the commands: python docs/site/command_page.py

It takes less than a second and needs no torch.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal

import cyclopts

from foveal.cli import app

PAGE = Path(__file__).parents[1] / "commands.md"

#: For each command in the order of the page: pages that show how it is used.
PAGES = {
    "segment": "[guide](guide.md#predict), [large images](large-images.md)",
    "classify": "[classification](classification.md)",
    "upscale": "[super-resolution](super_resolution.md)",
    "regress": "[values of each pixel](regression.md)",
    "prompt": "[clicks and boxes](prompting.md)",
    "predict": "[guide](guide.md#predict)",
    "video": "[videos](guide.md#videos)",
    "batch": "[many images](many-images.md)",
    "serve": "[serving](serving.md)",
    "demo": "[five minutes](start.md)",
    "models": "[model zoo](zoo.md), [weights](weights.md#names)",
    "data check": "[data](data.md)",
    "data stats": "[other bands](bands.md)",
    "train": "[training](training.md), [your own masks](own_masks.md)",
    "evaluate": "[evaluation](evaluation.md)",
    "compare": "[which model is better](evaluation.md#which-model-is-better)",
    "export": "[deployment](deploy.md)",
    "bench": "[measuring speed](bench.md)",
    "save": "[share your weights](weights.md#share-your-weights)",
    "push": "[share your weights](weights.md#share-your-weights)",
    "convert": "[weights](weights.md)",
}
#: An option that so many commands have, with the same text and default, is described once.
SHARED = 7

_KINDS = {int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH"}
_QUOTE = "'"


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{len(PAGES)} commands: {PAGE}")


@dataclass(frozen=True)
class Option:
    """An option or an argument of a command, as text.

    Attributes:
        name: with the value that it takes, for example ``--size TEXT``.
        default: as Markdown; empty if there is none, or if the meaning states it.
        meaning: the help text.
    """

    name: str
    default: str
    meaning: str

    @property
    def positional(self) -> bool:
        return not self.name.startswith("--")


def page() -> str:
    """The Markdown of the page."""
    found = dict(commands(app))
    if found.keys() != PAGES.keys():
        raise SystemExit(f"PAGES is not the list of commands: {', '.join(sorted(found.keys() ^ PAGES.keys()))}")
    options = {name: [_option(argument) for argument in arguments(command)] for name, command in found.items()}
    counts = Counter(option for each in options.values() for option in each)
    shared = [option for option, count in counts.items() if count >= SHARED]
    parts = [_INTRODUCTION, _table(["command", "what it does"], [_summary(name, found[name]) for name in PAGES])]
    parts += ["## Options of several commands\n", _table(["option", "default", "meaning"], map(_cells, shared))]
    parts += [_section(name, found[name], options[name], shared) for name in PAGES]
    return "\n".join([*parts, _ENDING])


def commands(parser: cyclopts.App, path: str = "") -> Iterator[tuple[str, cyclopts.App]]:
    """Every command with its name, such as "data check"."""
    for name in parser:
        if not name.startswith("-"):
            command = parser[name]
            whole = f"{path} {name}".strip()
            if command.default_command is None:
                yield from commands(command, whole)
            else:
                yield whole, command


def arguments(command: cyclopts.App) -> list[cyclopts.Argument]:
    """The arguments and options of a command that its help lists."""
    return [argument for argument in command.assemble_argument_collection(parse_docstring=True) if argument.show]


def _section(name: str, command: cyclopts.App, options: list[Option], shared: list[Option]) -> str:
    own = [option for option in options if option not in shared]
    words = " ".join(option.name for option in own if option.positional)
    usage = " ".join(f"foveal {name} {words} [OPTIONS]".split())
    lines = [f"## {name}\n", _prose(command.help), f"Usage: `{usage}`. Examples: {PAGES[name]}.", ""]
    lines.append(_table(["option", "default", "meaning"], map(_cells, own)))
    if also := [f"`{option.name.partition(' ')[0]}`" for option in options if option in shared]:
        lines.append(f"Also {', '.join(also)}, see [options of several commands](#options-of-several-commands).\n")
    return "\n".join(lines)


def _summary(name: str, command: cyclopts.App) -> list[str]:
    return [f"[`foveal {name}`](#{name.replace(' ', '-')})", _prose(command.help)]


def _cells(option: Option) -> list[str]:
    return [f"`{option.name}`", option.default, _prose(option.meaning)]


def _option(argument: cyclopts.Argument) -> Option:
    """The text of an argument."""
    name, *further = argument.names
    meaning = " ".join((argument.parameter.help or "").split())
    hint, several = _plain(argument.hint)
    if not name.startswith("-"):
        name += "..." * (several or argument.field_info.kind is inspect.Parameter.VAR_POSITIONAL)
        return Option(name if argument.required else f"[{name}]", "", meaning)
    if typing.get_origin(hint) is Literal:
        name += " CHOICE"
        if "One of " not in meaning:
            meaning += f" One of {', '.join(typing.get_args(hint))}."
    elif typing.get_origin(hint) is dict:
        name += ".NAME VALUE"
    elif hint is not bool:
        name += f" {_kind(hint)}"
    name = ", ".join([name, *(each for each in further if each.startswith("--no-"))])
    return Option(name, "required" if argument.required else _default(argument), meaning)


def _plain(hint: Any) -> tuple[Any, bool]:
    """A type without ``None``; of a list or tuple the type of its items, and ``True``."""
    origin, kinds = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, UnionType):
        kinds = tuple(kind for kind in kinds if kind is not type(None))
        return _plain(kinds[0]) if len(kinds) == 1 else (kinds, False)
    return (kinds[0], True) if origin in (list, tuple) else (hint, False)


def _kind(hint: Any) -> str:
    """The value that an option takes, for example "INTEGER"."""
    if isinstance(hint, tuple):
        return " or ".join(map(_kind, hint))
    return " or ".join(typing.get_args(hint)) if typing.get_origin(hint) is Literal else _KINDS[hint]


def _default(argument: cyclopts.Argument) -> str:
    value = argument.field_info.default
    if isinstance(value, bool):  # a flag without a name for "off" is off unless it is given
        return "on" if value else "off" * (len(argument.names) > 1)
    if value is None or value is argument.field_info.empty:
        return ""
    values = value if isinstance(value, tuple | list) else [value]
    text = " ".join(str(each).removesuffix(".0") for each in values)
    return f"`{text}`" if text else ""


def _prose(text: str) -> str:
    """Help text as Markdown: options and commands as code, nothing else as markup."""
    pieces = re.split(r"('foveal [^']+'|(?<![\w-])--[a-z][\w.-]*[a-z0-9]|\bfoveal\[[a-z,-]+\])", " ".join(text.split()))
    return "".join(f"`{piece.strip(_QUOTE)}`" if index % 2 else _escaped(piece) for index, piece in enumerate(pieces))


def _escaped(text: str) -> str:
    return re.sub(r"([*\[\]`|])", r"\\\1", text.replace("<", "&lt;").replace(">", "&gt;"))


def _table(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(cells)} |" for cells in rows)]) + "\n"


_INTRODUCTION = """# Commands

This page is for those who look for an option of a command. It is made by `python docs/site/command_page.py` from the
parsers; do not edit it. `foveal COMMAND --help` prints the same in a terminal.

In Python, the same work is done by the functions on [public names](python_api.md). The guide explains the [exit
codes](guide.md#predict) and what [`--model`](guide.md#references-to-models) takes.
"""

_ENDING = """## Read next

[Guide](guide.md) · [Settings of training](training.md#settings) · [Public names](python_api.md)
"""


if __name__ == "__main__":
    main()
