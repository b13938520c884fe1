"""A pool of worker processes on this machine: each does one part at a time, and one that dies is replaced.

Progress is read from memory that a worker shares with the driver, so that it costs nothing per image and is still known
when the worker was killed. A worker gets a part when it has asked for one, so there are no queues that could grow.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from ..errors import FovealError
from .manifest import Entry
from .stores import StoreError
from .worker import Setup, Task, Worker, reason_of

_POLL = 0.2  # seconds between two looks at the progress
_TRIES = 3  # of a part whose inputs cannot be read, or whose results cannot be stored
_DEATHS = 2  # of processes that worked on an image alone, after which it is left out
_STARTS = 5  # of processes for each worker that ended before any was ready again
_CONTEXT = multiprocessing.get_context("spawn")  # a fork would copy threads of libraries that are not there


class WorkerError(FovealError):
    """Worker processes cannot work."""

    exit_code = 1


class Event(NamedTuple):
    """What a pool reports.

    Attributes:
        finished: inputs that were finished since the last event, or taken back because their worker died (negative).
        entry: of the part that was completed, if any.
        note: a line for the user.
    """

    finished: int = 0
    entry: Entry | None = None
    note: str = ""


@dataclass
class _Process:
    """A worker, seen by the driver."""

    process: Any
    connection: Connection
    progress: Any  # number of inputs of the part that were begun, and that are finished
    task: Task | None = None
    counted: int = 0  # finished inputs that were reported
    ready: bool = False


@dataclass
class Pool:
    """Worker processes.

    Attributes:
        setups: what each worker is started with; as many as there are.
        runtime: what runs the model, known after the first event.
    """

    setups: list[Setup]
    runtime: str = ""
    _processes: dict[int, _Process] = field(default_factory=dict)
    _again: deque[Task] = field(default_factory=deque)
    _deaths: Counter[tuple[int, int]] = field(default_factory=Counter)
    _tries: Counter[int] = field(default_factory=Counter)
    _failed_starts: int = 0

    def run(self, tasks: Iterator[Task]) -> Iterator[Event]:
        """Do all parts.

        Raises:
            StoreError: the disk or the object store fails again and again.
            WorkerError: worker processes end again and again before they are ready.
            FovealError: the model cannot be used.
        """
        try:
            for slot in range(len(self.setups)):
                self._start(slot)
            while self._processes:
                yield from self._step(tasks)
        finally:
            self._stop()

    def _start(self, slot: int) -> None:
        ours, theirs = _CONTEXT.Pipe()
        progress = _CONTEXT.RawArray("q", 2)
        process = _CONTEXT.Process(
            target=_work,
            args=(self.setups[slot], theirs, progress, os.getpid()),
            name=f"foveal-batch-{slot}",
            daemon=True,
        )
        process.start()
        theirs.close()  # so that the end of the process ends the connection
        self._processes[slot] = _Process(process, ours, progress)

    def _step(self, tasks: Iterator[Task]) -> Iterator[Event]:
        """Wait for messages for a moment, and handle them."""
        waiting = {each.connection: slot for slot, each in self._processes.items()}
        for connection in wait(list(waiting), _POLL):
            assert isinstance(connection, Connection)
            slot = waiting[connection]
            try:
                message = connection.recv()
            except (EOFError, OSError):
                yield from self._replace(slot)
                continue
            yield from self._handle(slot, message, tasks)
        for each in self._processes.values():
            if each.task is not None and each.progress[1] > each.counted:
                finished = each.progress[1]
                yield Event(finished - each.counted)
                each.counted = finished

    def _handle(self, slot: int, message: tuple[str, Any], tasks: Iterator[Task]) -> Iterator[Event]:
        process = self._processes[slot]
        kind, content = message
        if kind == "ready":
            process.ready, self.runtime, self._failed_starts = True, content, 0
        elif kind == "refused":
            raise content
        elif kind == "done":
            finished = content.done + len(content.failed)
            yield Event(finished - process.counted, content)
        elif process.task is not None:
            yield Event(-process.counted)
            if kind == "failed":  # this part, for now
                self._try_again(process.task, content)
            else:  # "broken": an error that nobody expected
                self._again.append(self._blame(process.task, process.progress[0] - 1, content))
        process.task, process.counted = None, 0
        self._give(slot, tasks)

    def _try_again(self, task: Task, error: StoreError) -> None:
        self._tries[task.number] += 1
        if self._tries[task.number] >= _TRIES:
            raise error
        time.sleep(self._tries[task.number])  # all workers use the same disk or store, so none is held up for nothing
        self._again.append(task)

    def _give(self, slot: int, tasks: Iterator[Task]) -> None:
        """Give a worker its next part, or end it."""
        process = self._processes[slot]
        task = self._again.popleft() if self._again else next(tasks, None)
        process.task = task
        process.progress[0] = process.progress[1] = 0
        if task is not None:
            with suppress(OSError):  # a worker that has just died is replaced when its connection ends
                process.connection.send(task)
        elif all(each.task is None for each in self._processes.values()):
            for each in self._processes.values():
                with suppress(OSError):
                    each.connection.send(None)
        # Otherwise it waits: it may have to take over the part of one that dies.

    def _replace(self, slot: int) -> Iterator[Event]:
        """Start a new worker for one that has ended."""
        dead = self._processes.pop(slot)
        dead.process.join()
        code, task = dead.process.exitcode, dead.task
        dead.connection.close()
        if task is None and dead.ready:
            return  # it was told that there is no more work
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if not dead.ready:
            self._failed_starts += 1
            if self._failed_starts >= _STARTS * len(self.setups):
                raise WorkerError(
                    f"{self._failed_starts} worker processes ended before they were ready, the last one with {how}"
                )
        elif task is not None:
            yield Event(-dead.counted, note=f"a worker process ended with {how}; part {task.number} is done again")
            self._again.append(self._blame(task, dead.progress[0] - 1, how))
        self._start(slot)

    def _blame(self, task: Task, index: int, how: str) -> Task:
        """The part of a worker that died, without an image that has ended several processes."""
        if task.careful:
            self._deaths[task.number, index] += 1
            if self._deaths[task.number, index] >= _DEATHS and (
                index < 0 or index in task.skip
            ):  # it is no image's fault
                raise WorkerError(f"part {task.number} cannot be done: {how}")
            if self._deaths[task.number, index] >= _DEATHS:
                reason = f"processes that worked on it failed {_DEATHS} times ({how})"
                return task._replace(skip={**task.skip, index: reason})
        return task._replace(careful=True)

    def _stop(self) -> None:
        for each in self._processes.values():
            each.process.terminate()
        for each in self._processes.values():
            each.process.join()
            each.connection.close()
        self._processes.clear()


def _work(setup: Setup, connection: Connection, progress: Any, driver: int) -> None:
    """Body of a worker process: do parts until there are no more, or the driver has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal; the driver gets it, too, and ends the workers

    def report(begun: int, done: int) -> None:
        if begun > 0:
            progress[0] = begun
        else:
            progress[1] = done
        if os.getppid() != driver:  # the results so far are not needed: the next start does the part again
            os._exit(1)

    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the driver has ended
        try:
            worker = Worker(setup)
        except FovealError as error:
            connection.send(("refused", error))
            return
        connection.send(("ready", worker.predictor.runtime))
        while (task := connection.recv()) is not None:
            connection.send(_outcome(worker, task, report))
        os._exit(0)  # at once: all is stored, and threads of libraries can take long to end


def _outcome(worker: Worker, task: Task, report: Any) -> tuple[str, Any]:
    try:
        return "done", worker.run(task, report)
    except StoreError as error:
        return "failed", error
    except FovealError as error:
        return "refused", error
    except Exception as error:
        return "broken", reason_of(error)
