"""Inputs and results of batch jobs, and jobs that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from foveal.batch import run
from foveal.batch.inputs import Search
from foveal.batch.manifest import Manifest
from foveal.batch.run import Request
from foveal.batch.worker import Task, Worker

MODEL = "efficientvit_b0.camvid"
PATIENCE = 900  #: seconds that a test waits for a process that must end; the machine may be busy with other work
ENTRIES = "_foveal/*/parts/*.json"


def pictures(folder: Path, count: int, size: tuple[int, int] = (40, 56)) -> list[str]:
    """Write small images, each different, in two folders; their names."""
    rng = np.random.default_rng(5)
    names = [f"{'left' if index % 2 else 'right'}/{index:05}.png" for index in range(count)]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 255, (5, 7, 3), np.uint8))
        small.resize((size[1], size[0]), Image.Resampling.BICUBIC).save(folder / name)
    return names


def names_in(out: Path) -> list[str]:
    """The inputs in the results, sorted, as often as they occur: rows, members of tar files, and mask files."""
    files = sorted(path for path in out.rglob("*") if path.is_file() and "_foveal" not in path.parts)
    assert not [path.name for path in files if path.name.startswith(".")], "temporary files"
    found: list[str] = []
    for path in files:
        if path.suffix == ".parquet":
            found += pq.read_table(path)["image"].to_pylist()
        elif path.suffix == ".tar":
            with tarfile.open(path) as archive:
                found += [name.removesuffix(".png") for name in archive.getnames()]
        else:
            found.append(path.relative_to(out).as_posix().removesuffix(".png"))
    return sorted(found)


def contents(out: Path) -> dict[str, bytes]:
    """Every file of the results."""
    files = (path for path in out.rglob("*") if path.is_file() and "_foveal" not in path.parts)
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


def start(*arguments: object, errors: Path) -> subprocess.Popen[bytes]:
    """Start ``foveal batch ARGUMENTS``, to be killed or interrupted."""
    command = [sys.executable, "-m", "foveal", "batch", *map(str, arguments)]
    with errors.open("wb") as file:
        # Ctrl-C counts, too, where the tests run in the background of a shell, which then ignores it.
        return subprocess.Popen(command, stdout=file, stderr=file, preexec_fn=_heed_interrupts)


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def entries(out: Path) -> int:
    """Number of parts that are committed."""
    return len(list(out.glob(ENTRIES)))


def wait_until(condition: Callable[[], object], process: subprocess.Popen[bytes] | None = None) -> None:
    """Wait for something that must happen before ``process`` ends."""
    for _ in range(200_000):
        if condition():
            return
        assert process is None or process.poll() is None, "the process ended before"
        time.sleep(0.001)
    raise AssertionError("it did not happen")


def children(pid: int) -> list[int]:
    """Processes that a process has started and that have started Python's interpreter of multiprocessing."""
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [int(child) for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and whose parent has not asked for its exit code does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def work_until(call: int, request: Request) -> None:
    """Do a job in this process, and kill it at the ``call``-th rename, link or sync (0: never)."""
    count = 0

    def counted(function: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            for step in (None, function):
                result = step(*args, **kwargs) if step else None
                count += 1
                if count == call:
                    os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapper

    for name in ("replace", "fsync", "link"):
        setattr(os, name, counted(getattr(os, name)))
    work(request)


def work(request: Request) -> None:
    """Do a job in this process, without a pool."""
    setup = run._setups(request)[0]
    search = Search(request.input, request.out, request.part_size, column=request.column)
    manifest, _ = Manifest.open(request.out, run._describe(request), search)
    worker, done = Worker(replace(setup, job=manifest.job)), manifest.committed()
    for line in manifest.lines():
        if not done[line.number]:
            worker.run(Task(line.number, line.part))
