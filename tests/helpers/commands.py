"""Run ``foveal`` commands: in the process of the test, or each in a process of its own, which takes seconds."""

from __future__ import annotations

import subprocess
import sys
from typing import Protocol

import pytest

from foveal.cli import main


class Command(Protocol):
    """Runs ``foveal ARGUMENTS``: the fixture ``cli`` in this process, :func:`run_process` in one of its own."""

    def __call__(self, *arguments: object) -> subprocess.CompletedProcess[str]: ...


def run_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Exit code and output of ``foveal ARGUMENTS`` in a process of its own."""
    return subprocess.run([sys.executable, "-m", "foveal", *map(str, arguments)], capture_output=True, text=True)


def here(capfd: pytest.CaptureFixture[str], *arguments: object) -> subprocess.CompletedProcess[str]:
    """Exit code and output of ``foveal ARGUMENTS`` in this process."""
    words = [str(argument) for argument in arguments]
    capfd.readouterr()
    with pytest.raises(SystemExit) as end:
        main(words)
    assert isinstance(end.value.code, int)
    return subprocess.CompletedProcess(words, end.value.code, *capfd.readouterr())
