"""Several processes that compute one image together: the mask of one process, also after one of them was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from helpers.commands import run_process
from helpers.streams import stripes

COMMAND = ["segment", "image.npy", "--exact", "--tile", "64", "--json"]


def torchrun(folder: Path, out: str, *options: str, processes: int = 2) -> subprocess.Popen[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m", "foveal"]
    return subprocess.Popen(
        [sys.executable, *launcher, *COMMAND, "--out", out, *options],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="Linux only")
def test_two_processes_give_the_mask_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("image.npy", stripes(800, 900))
    assert run_process(*COMMAND, "--out", "one.npy").returncode == 0
    one = np.load("one.npy")
    team = torchrun(tmp_path, "two.npy")
    output, errors = team.communicate(timeout=300)
    assert team.returncode == 0, errors
    assert output.count("\n") == 1
    assert (np.load("two.npy") == one).mean() >= 0.9999

    killed = torchrun(tmp_path, "killed.npy")
    record = tmp_path / ".killed.npy.streaming" / "progress-1.npz"
    while not record.exists():
        assert killed.poll() is None
        time.sleep(0.02)
    started = time.monotonic()
    os.kill(children(killed.pid)[0], signal.SIGKILL)
    killed.communicate(timeout=60)
    assert killed.returncode != 0
    assert time.monotonic() - started < 60
    assert not (tmp_path / "killed.npy").exists()
    again = torchrun(tmp_path, "killed.npy", "--resume")
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert np.array_equal(np.load("killed.npy"), np.load("two.npy"))
    assert not record.parent.exists()
