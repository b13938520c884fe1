"""Batch jobs on a real Ray cluster of two nodes on this machine, one of which is killed while it works."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from foveal.batch import run
from foveal.batch.inputs import Search
from foveal.batch.manifest import Manifest
from foveal.batch.ray_run import Attempt
from foveal.batch.run import Request
from helpers.batch_jobs import MODEL, PATIENCE, contents, entries, names_in, pictures, start, wait_until, work


class Cluster:
    """The cluster of :mod:`helpers.ray_cluster`."""

    def __init__(self, log: Path) -> None:
        command = [sys.executable, str(Path(__file__).parents[1] / "helpers" / "ray_cluster.py")]
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self.address = self._line("address ")

    def _line(self, beginning: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(beginning):
                return line.removeprefix(beginning).strip()
        raise AssertionError("the cluster ended")

    def kill_second_node(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("kill\n")
        self.process.stdin.flush()
        self._line("killed")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    started = Cluster(tmp_path / "cluster.log")
    yield started
    started.process.communicate("")


@pytest.mark.long
def test_a_killed_node_loses_and_doubles_nothing(cluster: Cluster, tmp_path: Path) -> None:
    """Both nodes have a replica; the second is killed with its part half done, which the first does again."""
    names = pictures(tmp_path / "in", 60, (200, 300))
    (tmp_path / "in" / "bad.jpg").write_bytes(b"bad")
    out, log = tmp_path / "out", tmp_path / "log"
    options = [tmp_path / "in", out, "--model", MODEL, "--result", "shares", "--part-size", 2]
    job = start(*options, "--ray", cluster.address, "--workers", 2, errors=log)
    wait_until(lambda: entries(out) >= 6, job)
    cluster.kill_second_node()
    assert entries(out) < 31, "too fast for this test"
    assert job.wait(PATIENCE) == 1, log.read_text()
    assert "60 of 61 images" in log.read_text()
    assert names_in(out) == sorted(names)
    work(Request(str(tmp_path / "in"), str(tmp_path / "alone"), MODEL, "shares", part_size=2))
    assert contents(out) == contents(tmp_path / "alone")


@pytest.mark.long
def test_a_killed_driver_is_continued_with_and_without_ray(cluster: Cluster, tmp_path: Path) -> None:
    """A start of either way does what the other one has left."""
    names = pictures(tmp_path / "in", 40, (200, 300))
    out, log = tmp_path / "out", tmp_path / "log"
    options = [tmp_path / "in", out, "--model", MODEL, "--part-size", 2]
    for on_ray, after in ((True, 3), (False, 7)):
        more = ["--ray", cluster.address] if on_ray else ["--workers", 1]
        job = start(*options, *more, errors=log)
        wait_until(lambda after=after: entries(out) >= after, job)
        job.kill()
        job.wait()
    assert entries(out) < 20, "too fast for this test"
    assert start(*options, "--ray", cluster.address, errors=log).wait(PATIENCE) == 0, log.read_text()
    assert "40 of 40 images" in log.read_text()
    assert names_in(out) == sorted(names)


def test_an_image_that_ends_its_actors_is_left_out(tmp_path: Path) -> None:
    """Ray repeats the part of an actor that has ended; the third attempt knows which image ended two of them."""
    pictures(tmp_path / "in", 4)
    request = Request(str(tmp_path / "in"), str(tmp_path / "out"), MODEL, part_size=4)
    manifest, _ = Manifest.open(request.out, run._describe(request), Search(request.input, request.out, 4))
    (line,) = manifest.lines()
    for _ in range(3):
        attempt = Attempt(manifest, line.number)
        task = attempt.begin(line.part)
        for begun in (1, 2, 3):
            attempt.note(begun, -1)
            attempt.note(0, begun - 1)
        assert not task.skip  # and the actor ends here
    attempt = Attempt(manifest, line.number)
    task = attempt.begin(line.part)
    assert task.careful
    assert list(task.skip) == [2]
    attempt.end()
    assert not Attempt(manifest, line.number).begin(line.part).careful


def test_without_ray_or_a_cluster_it_is_one_line(tmp_path: Path) -> None:
    pictures(tmp_path / "in", 1)
    log = tmp_path / "log"
    options = [tmp_path / "in", tmp_path / "out", "--model", MODEL]
    assert start(*options, "--ray", "127.0.0.1:1", errors=log).wait(PATIENCE) in (1, 2)
    assert log.read_text().startswith("foveal: --ray 127.0.0.1:1: n")  # needs Ray, or no Ray cluster there
    assert log.read_text().count("\n") == 1


def test_what_travels_is_small(tmp_path: Path) -> None:
    """A row of Ray's is the place of a part in the plan, whatever the number of its images."""
    pictures(tmp_path / "in", 50)
    request = Request(str(tmp_path / "in"), str(tmp_path / "out"), MODEL, part_size=25)
    manifest, _ = Manifest.open(request.out, run._describe(request), Search(request.input, request.out, 25))
    for line in manifest.lines():
        assert manifest.part(line.start, line.length) == line.part
        assert len(json.dumps([line.number, line.start, line.length])) < 30
