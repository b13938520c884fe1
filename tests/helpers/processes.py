"""Processes that start with torch imported, by forking: importing it takes longer than what most of them do."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from functools import cache
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

from foveal.cli import main


@cache
def fork_server() -> ForkServerContext:
    """The context of processes with training imported, so that also a kill hits the training and not an import.

    They are forked from a process that has run nothing but these imports, not from that of the tests.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["foveal.training.train", "foveal.models"])
    return context


def start_command(*arguments: object, errors: Path) -> ForkServerProcess:
    """Start ``foveal ARGUMENTS``, to be killed; a test of how a command ends starts Python itself.

    Args:
        arguments: of the command.
        errors: file that standard error goes to.
    """
    process = fork_server().Process(target=_run, args=(list(map(str, arguments)), errors))
    process.start()
    return process


def run_until_killed(target: Callable[..., None], *arguments: Any, seconds: float) -> int:
    """Exit code of a function in a process of its own: 0, or that of a kill, which the function does to itself.

    Args:
        target: the function.
        arguments: of the function.
        seconds: until the process counts as hanging.
    """
    process = fork_server().Process(target=target, args=arguments)
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError("it hangs")
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode


def start_torchrun(command: Sequence[str], errors: Path) -> ForkServerProcess:
    """Start the launcher of a command of :func:`helpers.runs.torchrun`; standard error goes to ``errors``.

    Its processes are Python's own, as without this.
    """
    process = fork_server().Process(target=_launch, args=(list(command[3:]), errors))
    process.start()
    return process


def _launch(arguments: list[str], errors: Path) -> None:
    from torch.distributed.run import main as torchrun

    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    torchrun(arguments)


def _run(arguments: list[str], errors: Path) -> None:
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    main(arguments)
