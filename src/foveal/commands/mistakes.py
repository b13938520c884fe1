"""Mistakes in the words of a command: what to write instead."""

from __future__ import annotations

import inspect
import re

import cyclopts

from ..errors import ConfigError, closest

#: Options whose numbers are one word, and what is between them.
_JOINED = {"--point": ",", "--background": ",", "--box": ",", "--tokens": ",", "--crop": "x", "--size": "x"}
_NUMBER = re.compile(r"-?\d+(\.\d*)?,?")


def check(arguments: list[str]) -> None:
    """Refuse words that would be read in another sense than they have.

    Raises:
        ConfigError: ``--set.NAME.ENTRY``, or numbers of one value as several words.
    """
    for index, argument in enumerate(arguments):
        name, _, entry = argument.partition("=")[0].removeprefix("--set.").partition(".")
        if argument.startswith("--set.") and entry:
            # Otherwise entries not named would be undefined, and cyclopts fails on a mixture of both forms.
            raise ConfigError(f"--set.{name}.{entry}: give all entries at once, --set.{name} '{{{entry}: ...}}'")
        if argument in _JOINED:
            numbers = _leading_numbers(arguments[index + 1 :])
            if len(numbers) > 1:
                joined = _JOINED[argument].join(number.rstrip(",") for number in numbers)
                raise ConfigError(f"{argument} {' '.join(numbers)}: write {argument} {joined}")


def _leading_numbers(words: list[str]) -> list[str]:
    end = next((index for index, word in enumerate(words) if not _NUMBER.fullmatch(word)), len(words))
    return words[:end]


def describe(error: cyclopts.CycloptsError) -> str:
    """The message of an error of the parser, with what to write instead."""
    if isinstance(error, cyclopts.UnknownOptionError):
        option = (error.token.keyword or error.token.value).partition("=")[0]
        names = [name for argument in error.argument_collection if argument.parse for name in argument.names]
        if (name := closest(option, names + _settings(names))) is not None:
            hint = f"Did you mean {name}?" if name.startswith("-") else f"Give {name} without the name of an option."
            return f"Unknown option: {option}. {hint}"
    if isinstance(error, cyclopts.UnusedCliTokensError) and error.unused_tokens:
        words = " ".join(error.unused_tokens)
        names = inspect.signature(error.target).parameters if error.target else {}
        options = [name for name in ("output", "out") if name in names]
        hint = f": for the file or folder of the result write --{options[0]} {words}" if options else ""
        return f"Unexpected {words}{hint}"
    return str(error)


def _settings(names: list[str]) -> list[str]:
    """The settings that are given as ``--set.NAME``, if the command has them."""
    if "--set" not in names:
        return []
    from .train_settings import SETTINGS

    return [f"--set.{name}" for name in SETTINGS]
