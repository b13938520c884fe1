"""Standard output and standard error: terminals of few characters, full disks, readers that leave, removed folders."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no /dev/full")
FULL = Path("/dev/full")


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "foveal", *map(str, arguments)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(command, text=True, encoding="utf-8", **streams)  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with a class whose name few terminals have."""
    from PIL import Image

    root = tmp_path_factory.mktemp("data")
    for split in ("train", "val"):
        for name in ("猫", "dog"):
            (root / split / name).mkdir(parents=True)
            Image.new("RGB", (40, 40)).save(root / split / name / "a.png")
    return root


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_terminals_of_few_characters(data: Path, encoding: str) -> None:
    done = run("data", "check", data, env={**os.environ, "PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u732b" in done.stdout


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
def test_a_full_disk_under_either_stream() -> None:
    with FULL.open("w") as full:
        done = run("compare", "--help", stdout=full)
        assert done.returncode == 1
        assert done.stderr == "foveal: cannot write standard output: No space left on device\n"
        done = run("compare", "a", "b", stderr=full)
        assert (done.returncode, done.stdout) == (2, "")


def test_a_reader_that_leaves() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = run("train", "--help-all", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_removed_working_folder(tmp_path: Path) -> None:
    code = f"import os; os.chdir({str(tmp_path)!r}); os.rmdir({str(tmp_path)!r}); from foveal.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "models"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("foveal: the working folder cannot be used")
    assert done.stderr.count("\n") == 1
