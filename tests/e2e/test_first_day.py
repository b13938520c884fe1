"""Every block of docs/first-day.md runs as it is written, in order, in one folder.

The blocks run in the environment of the tests with the package of this checkout, since an environment of its own would
install gigabytes; the line of pip is left out. Job 7 downloads weights unless they are in the cache.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from foveal.images.reading import read_mask

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "first-day.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SECONDS = 3600  #: until a block counts as hanging


def environment(folder: Path) -> dict[str, str]:
    """The environment of a user: ``foveal`` and ``python`` are those of the tests."""
    programs = folder / "programs"
    programs.mkdir()
    for name, command in (("python", ""), ("foveal", "-m foveal ")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {command}"$@"\n')
        (programs / name).chmod(0o755)
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(paths)}


def test_the_page_has_twelve_jobs() -> None:
    assert re.findall(r"^## (\d+)\.", PAGE, re.MULTILINE) == [str(number) for number in range(1, 13)]
    assert len(BLOCKS) > 12


@pytest.mark.long
def test_every_block_runs(tmp_path: Path) -> None:
    variables = environment(tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    for kind, text in BLOCKS:
        lines = [line for line in text.splitlines() if not line.startswith("pip install")]
        command = ["bash", "-euo", "pipefail"] if kind == "bash" else [sys.executable, "-"]
        done = subprocess.run(
            command, input="\n".join(lines), cwd=work, env=variables, capture_output=True, text=True, timeout=SECONDS
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
    assert len((work / "shares.csv").read_text().splitlines()) == 4
    assert len(list((work / "many-masks").rglob("*.png"))) == 5000
    assert len(np.unique(read_mask(work / "shared.png"))) > 1
