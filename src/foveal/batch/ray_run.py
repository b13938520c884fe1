"""Run the parts of a job on a Ray cluster: Ray Data with one actor for each replica of the model.

What travels through Ray is the place of a part in the plan, and the numbers of what was done: a few dozen bytes for
each part. A replica reads its part of the plan, the images and the model itself, and writes results and manifest
itself, as a process of :mod:`foveal.batch.pool` does. So a start with Ray continues one without it, and the other way
round.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..errors import DependencyError, FovealError
from .manifest import Entry, Line, Manifest
from .plan import Part
from .pool import Event
from .stores import StoreError
from .worker import Setup, Task, Worker

_ENDS = 2  # of actors that worked on an image, after which it is left out
_TRIES = 3  # of a part whose inputs cannot be read, or whose results cannot be stored
_CONNECT_SECONDS = 20
_BLOCKS = 10_000  # tasks that Ray keeps lists of; with more parts each task has several


class Replica:
    """An actor: the model, and what it does with parts."""

    def __init__(self, setup: Setup) -> None:
        self.worker = Worker(setup)

    def __call__(self, rows: Mapping[str, Any]) -> dict[str, Any]:
        """Do the parts of some rows, unless they are complete: Ray repeats a task as a whole."""
        done, failed = [], []
        for number, start, length in zip(*(rows[name].tolist() for name in ("number", "start", "length")), strict=True):
            entry = self.worker.manifest.entry(number) or self._run(number, start, length)
            done.append(entry.done)
            failed.append(len(entry.failed))
        return {"number": rows["number"], "done": np.array(done), "failed": np.array(failed)}

    def _run(self, number: int, start: int, length: int) -> Entry:
        manifest = self.worker.manifest
        attempt = Attempt(manifest, number)
        task = attempt.begin(manifest.part(start, length))
        for again in range(1, _TRIES + 1):
            try:
                entry = self.worker.run(task, attempt.note)
                attempt.end()
                return entry
            except StoreError:
                if again == _TRIES:
                    raise
                time.sleep(again)
        raise AssertionError


class Attempt:
    """A note in the manifest that a part was begun: Ray repeats the part of an actor that has ended without an end.

    The second attempt notes each image before it is worked on. An image that ended two attempts is left out.
    """

    def __init__(self, manifest: Manifest, number: int) -> None:
        self.number, self._store, self._name = number, manifest.store, manifest.note_name(number)
        self._known: dict[str, Any] = {}

    def begin(self, part: Part) -> Task:
        """The task of this attempt, after those that earlier attempts noted."""
        try:
            known = json.loads(self._store.read(self._name))
        except FileNotFoundError:
            known = {"careful": False, "at": -1, "ended": {}}
        else:
            if known["at"] >= 0:
                ended = known["ended"]
                ended[str(known["at"])] = ended.get(str(known["at"]), 0) + 1
            known |= {"careful": True, "at": -1}
        self._known = known
        self._write()
        reason = f"{_ENDS} actors that worked on it ended"
        skip = {int(index): reason for index, count in known["ended"].items() if count >= _ENDS}
        return Task(self.number, part, known["careful"], skip)

    def note(self, begun: int, done: int) -> None:
        """Note the image that is worked on, in an attempt that is not the first."""
        if self._known["careful"] and begun > 0:
            self._known["at"] = begun - 1
            self._write()

    def end(self) -> None:
        """Remove the note: the part is complete."""
        self._store.remove(self._name)

    def _write(self) -> None:
        self._store.put(self._name, json.dumps(self._known).encode(), sync=False)


def run_on_ray(setup: Setup, lines: Iterator[Line], address: str, replicas: int | None) -> Iterator[Event]:
    """Do parts on a cluster; it gets replicas as it has work and room for them.

    Args:
        setup: of each worker.
        lines: the parts.
        address: of the cluster, or "auto" for the one of this machine, "local" for a new one on it.
        replicas: largest number of replicas; ``None``: as many as there are CPUs, or GPUs if there are any.

    Raises:
        DependencyError: Ray is not installed.
        StoreError: a disk or an object store fails again and again, or there is no cluster.
        FovealError: a replica cannot load the model.
    """
    ray = _start(address)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = 0
    resources = ray.cluster_resources()
    needs: dict[str, Any] = {"num_cpus": setup.engine.get("threads") or 1}
    if resources.get("GPU") and setup.engine.get("device", "auto") in ("auto", "cuda"):
        needs["num_gpus"] = 1
    room = resources.get("GPU", 0) if "num_gpus" in needs else resources.get("CPU", 1) // needs["num_cpus"]
    rows = [{"number": line.number, "start": line.start, "length": line.length} for line in lines]
    most = max(1, min(len(rows), replicas or int(room)))
    parts = ray.data.from_items(rows, override_num_blocks=min(len(rows), _BLOCKS))
    results = parts.map_batches(
        Replica,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most, max_tasks_in_flight_per_actor=2),
        fn_constructor_args=(setup,),
        **needs,
    )
    try:
        for row in results.iter_rows():
            entry = Entry(row["done"], [], [])  # who failed is read from the manifest at the end
            yield Event(row["done"] + row["failed"], entry)
    except (ray.exceptions.RayError, FovealError) as error:
        raise _plain(error) from error
    finally:
        ray.shutdown()


def _start(address: str) -> Any:
    """Connect to the cluster.

    Raises:
        DependencyError: Ray is not installed.
        StoreError: there is no cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # of the driver: the cluster has logs of its own
    try:
        import ray  # pyright: ignore[reportMissingImports] - not among the test tools, for its size
        import ray.data  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DependencyError(f"--ray {address}: needs Ray: pip install 'foveal[ray]'") from error
    host, _, port = address.rpartition(":")
    try:
        if port.isdecimal() and "/" not in host:  # Ray would try for minutes
            socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise StoreError(
            f"--ray {address}: no Ray cluster there ({reason}): start one with 'ray start --head'"
        ) from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray


def _plain(error: BaseException) -> FovealError:
    """The error of Foveal's that an error of Ray's stands for, or one with its first line."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, FovealError):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return StoreError(f"Ray: {lines[-1].strip() if lines else type(error).__name__}")
