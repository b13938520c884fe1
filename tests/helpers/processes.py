"""Processes that start with torch imported, by forking: importing it takes longer than what most of them do."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from functools import cache
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

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
