"""Programs that write data sets with the tools' own packages, each in an environment of its own."""

from __future__ import annotations

import os
import re
import subprocess
import venv
from pathlib import Path

_HERE = Path(__file__).parent
_ENVIRONMENTS = _HERE.parents[2] / ".venv-exporters"  # kept: their packages are large, and do not fit together


def export(script: str, packages: list[str], *arguments: str | Path) -> None:
    """Run ``SCRIPT ARGUMENTS``, after installing packages from the package index if that was not done before."""
    folder = _ENVIRONMENTS / re.split(r"[<>=]", packages[0])[0]
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not (folder / "complete").exists():
        venv.create(folder, with_pip=True, clear=True)
        _run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages])
        (folder / "complete").touch()
    _run([python, _HERE / script, *arguments])


def _run(command: list[str | Path]) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["QT_QPA_PLATFORM"] = "offscreen"
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
