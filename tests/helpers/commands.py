"""Commands in this process, for the many mistakes that are told before any work: a process of its own takes seconds."""

from __future__ import annotations

import subprocess

import pytest

from foveal.cli import main


def here(capfd: pytest.CaptureFixture[str], *arguments: object) -> subprocess.CompletedProcess[str]:
    """What ``foveal ARGUMENTS`` prints, and its exit code."""
    words = [str(argument) for argument in arguments]
    capfd.readouterr()
    with pytest.raises(SystemExit) as end:
        main(words)
    assert isinstance(end.value.code, int)
    return subprocess.CompletedProcess(words, end.value.code, *capfd.readouterr())
