"""Each input is once in the results, whatever is killed: a process at any write, workers, the driver."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from foveal.batch import run
from foveal.batch.inputs import Search
from foveal.batch.manifest import Manifest
from foveal.batch.pool import Pool
from foveal.batch.run import Request, run_batch
from foveal.batch.worker import Task
from helpers.batch_jobs import (
    MODEL,
    PATIENCE,
    alive,
    children,
    contents,
    entries,
    names_in,
    pictures,
    start,
    wait_until,
    work_until,
)
from helpers.processes import run_until_killed

KINDS: dict[str, dict[str, Any]] = {"masks": {}, "tar": {"pack": True}, "shares": {"result": "shares"}}


def in_process(call: int, request: Request) -> int:
    return run_until_killed(work_until, call, request, seconds=PATIENCE)


@pytest.mark.parametrize(
    ("kind", "step"),
    [("masks", 31), ("shares", 17), *(pytest.param(kind, 2, marks=pytest.mark.long) for kind in KINDS)],
)
def test_killed_at_any_write_the_next_start_completes(kind: str, step: int, tmp_path: Path) -> None:
    """Killed before or after a rename, link or sync; always a reader sees whole files, each input at most once."""
    names = pictures(tmp_path / "in", 7)
    request = Request(str(tmp_path / "in"), str(tmp_path / "whole"), MODEL, part_size=3, **KINDS[kind])
    assert in_process(0, request) == 0
    expected = contents(tmp_path / "whole")
    assert names_in(tmp_path / "whole") == sorted(names)
    call, kills = 1, 0
    while True:
        out = tmp_path / f"killed-{call}"
        request = replace(request, out=str(out))
        if in_process(call, request) == 0:
            break
        kills += 1
        visible = {name: content for name, content in contents(out).items() if not Path(name).name.startswith(".")}
        assert visible.items() <= expected.items()
        assert in_process(0, request) == 0
        assert contents(out) == expected
        call += step
    assert kills >= 2


def test_killed_workers_are_replaced(tmp_path: Path) -> None:
    """Three kills while a job runs, each after further parts were committed: nothing is lost or doubled."""
    names = pictures(tmp_path / "in", 40, (96, 128))
    out, log = tmp_path / "out", tmp_path / "log"
    options = ["--model", MODEL, "--result", "shares", "--workers", 2, "--part-size", 2]
    process = start(tmp_path / "in", out, *options, errors=log)
    killed: set[int] = set()
    for after in (0, 2, 6):
        wait_until(lambda after=after: entries(out) >= after and set(children(process.pid)) - killed, process)
        victim = (set(children(process.pid)) - killed).pop()
        os.kill(victim, signal.SIGKILL)
        killed.add(victim)
    assert process.wait(PATIENCE) == 0, log.read_text()
    assert names_in(out) == sorted(names)
    assert "40 of 40 images" in log.read_text()
    assert "SIGKILL" in log.read_text()


@pytest.mark.parametrize("after", [0, 4])
def test_a_killed_driver_is_continued(after: int, tmp_path: Path) -> None:
    """Its workers end, too; the same command does what is left, and says so."""
    names = pictures(tmp_path / "in", 24, (96, 128))
    out, log = tmp_path / "out", tmp_path / "log"
    options = ["--model", MODEL, "--workers", 1, "--part-size", 2]
    process = start(tmp_path / "in", out, *options, errors=log)
    wait_until(lambda: entries(out) >= after and children(process.pid), process)
    workers = children(process.pid)
    process.kill()
    process.wait()
    wait_until(lambda: not any(map(alive, workers)))
    before = entries(out)
    assert before < 12
    again = start(tmp_path / "in", out, *options, "--resume", errors=log)
    assert again.wait(PATIENCE) == 0, log.read_text()
    assert "24 of 24 images" in log.read_text()
    assert (f"{2 * before} done before" in log.read_text()) == (before > 0)
    assert names_in(out) == sorted(names)


def test_an_image_that_ends_its_processes_is_left_out_and_named(tmp_path: Path) -> None:
    """Whatever process works on the large image is killed: it is given up, the others of its part are not."""
    names = pictures(tmp_path / "in", 5)
    pictures(tmp_path / "large", 1, (1500, 2000))
    large = "right/00002.png"
    os.replace(tmp_path / "large" / "right" / "00000.png", tmp_path / "in" / large)
    request = Request(str(tmp_path / "in"), str(tmp_path / "out"), MODEL, workers=1, part_size=5)
    manifest, _ = Manifest.open(request.out, run._describe(request), Search(request.input, request.out, 5))
    (line,) = manifest.lines()
    place = line.part.names.index(large)
    pool = Pool([replace(setup, job=manifest.job) for setup in run._setups(request)])
    killed: list[int] = []
    finished = threading.Event()

    def kill() -> None:
        while not finished.wait(0.002):
            for each in list(pool._processes.values()):
                if each.task is not None and each.progress[0] == place + 1 and each.process.pid not in killed:
                    killed.append(each.process.pid)
                    each.process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        events = list(pool.run(iter([Task(line.number, line.part)])))
    finally:
        finished.set()
        killer.join()
    assert len(killed) == 3  # the first one may have worked on a batch
    assert names_in(tmp_path / "out") == sorted(set(names) - {large})
    (entry,) = (event.entry for event in events if event.entry is not None)
    assert [name for name, _ in entry.failed] == [large]
    assert "SIGKILL" in entry.failed[0][1]
    assert sum(event.finished for event in events) == 5


def test_two_processes_on_one_part_do_no_harm(tmp_path: Path) -> None:
    """A process that was believed dead and completes its part replaces the results by equal ones."""
    pictures(tmp_path / "in", 6)
    request = Request(str(tmp_path / "in"), str(tmp_path / "out"), MODEL, "rle", workers=1, part_size=2)
    assert run_batch(request).done == 6
    expected = contents(tmp_path / "out")
    assert in_process(0, replace(request, out=str(tmp_path / "out"))) == 0
    entry = next((tmp_path / "out").glob("_foveal/*/parts/000001.json"))
    entry.unlink()  # as seen by a process that began before the entry was written
    assert run_batch(request).done == 2
    assert contents(tmp_path / "out") == expected
