"""Lanes: bounded queues in front of the networks.

A lane has one thread that runs networks, threads that read images ahead of it, and threads that turn results into
answers. Requests of one model that wait together run as one batch. Their number is bounded, and so are the bytes of the
images that are read.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from ..errors import FovealError, is_out_of_memory
from ..prediction.batching import Batches, Prepared
from ..prediction.devices import cpu_count
from .metrics import Metrics
from .replies import RefusalError, busy, refusal_of

_HELD = 512 << 20  # bytes of images between reading and answer, beyond which no further image is read
_THREADS = 4  # that read images and write answers
_SHARE = 0.2  # weight of the last request in the mean of their times
_LOG = logging.getLogger(__name__)


class Work:
    """The work of one request.

    Args:
        batches: runs the model; requests with the same one run in one batch.
        read: reads and prepares the image; called in a thread.
        write: turns the result into the answer; called in a thread.
        bytes: expected size of the image and the network's input.
        deadline: on the clock of ``time.monotonic``.

    Attributes:
        future: what ``write`` returns; its exception is a :class:`RefusalError`, or unexpected.
        reading: the prepared image, or what came instead of it; ``None``: not begun.
        held: bytes that it holds.
        batch: number of requests that ran with it.
    """

    def __init__(
        self,
        batches: Batches,
        read: Callable[[], Prepared],
        write: Callable[[Any], Any],
        bytes: int,
        deadline: float,
    ) -> None:
        self.batches, self.read, self.write, self.bytes, self.deadline = batches, read, write, bytes, deadline
        self.future: Future[Any] = Future()
        self.reading: Future[Prepared | BaseException] | None = None
        self.held = 0
        self.given_up = False
        self.batch = 0

    def check(self) -> None:
        """Raise a RefusalError if nobody waits for the result."""
        if self.given_up:
            raise RefusalError(499, "the client has gone", "cancelled")
        if time.monotonic() > self.deadline:
            raise late()

    def fail(self, error: BaseException) -> None:
        """Set the exception."""
        with suppress(InvalidStateError):  # cancelled: nobody waits
            self.future.set_exception(refusal_of(error) if isinstance(error, FovealError) else error)


def late() -> RefusalError:
    """The refusal of a request whose time is over."""
    return RefusalError(504, "not done before its deadline: try again later, or with a smaller image", "deadline")


class Lane:
    """One queue and the thread that works on it.

    Args:
        name: of the lane, in metrics and names of threads.
        limit: requests that wait, run or are written at once.
        batch_size: of them run at once.
        metrics: of the service.
    """

    def __init__(self, name: str, limit: int, batch_size: int, metrics: Metrics) -> None:
        self.name, self.limit, self.batch_size, self.metrics = name, limit, batch_size, metrics
        self._changed = threading.Condition()
        self._waiting: deque[Work] = deque()
        self._open = 0  # requests without an answer yet
        self._held = 0  # bytes of those whose image is read
        self._ended = False
        self._mean = 0.1  # seconds between two answers
        count = min(_THREADS, cpu_count())
        self._readers = ThreadPoolExecutor(count, f"foveal-{name}-read")
        self._writers = ThreadPoolExecutor(count, f"foveal-{name}-write")
        self._thread = threading.Thread(target=self._run, name=f"foveal-{name}", daemon=True)
        self._thread.start()
        metrics.add_lane(name, lambda: self._open)

    def check_room(self) -> None:
        """Refuse a request before its body is read.

        Raises:
            RefusalError: 503, the lane is full.
        """
        if self._open >= self.limit:
            raise busy(f"busy: {self._open} requests wait already", "queue", self._open * self._mean)

    def submit(self, work: Work) -> None:
        """Queue work.

        Raises:
            RefusalError: 503, the lane is full.
        """
        with self._changed:
            self.check_room()
            self._open += 1
            self._waiting.append(work)
            self._read_ahead()
            self._changed.notify()

    def drop(self, work: Work) -> None:
        """Give up work because nobody waits for its result: if it does not run yet, it never will."""
        work.given_up = True
        with self._changed:
            if work not in self._waiting:
                return
            self._waiting.remove(work)
            if work.reading is None:
                self._close(work, late())
            else:  # its memory is free when the reader has noticed
                work.reading.add_done_callback(lambda _: self._close(work, late()))

    def end(self) -> None:
        """End the threads; waiting work is refused."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join()
        for pool in (self._readers, self._writers):
            pool.shutdown(wait=True, cancel_futures=True)

    def _read_ahead(self) -> None:
        """Start to read the images that come next, as far as memory allows; the lock is held."""
        started = sum(work.reading is not None for work in self._waiting)
        for work in self._waiting:
            if started >= 2 * self.batch_size or (self._held and self._held + work.bytes > _HELD):
                return
            if work.reading is None:
                started += 1
                work.held = work.bytes
                self._held += work.held
                work.reading = self._readers.submit(_read, work)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or self._first_reading() is not None)
                if self._ended:
                    for work in self._waiting:
                        work.fail(busy("the service ends", "ending"))
                    return
                reading = self._first_reading()
            if reading is not None:
                reading.result()
            with self._changed:
                batch = self._take()
            self._predict(batch)

    def _first_reading(self) -> Future[Prepared | BaseException] | None:
        """The image of the request that is next; ``None``: there is no request, or its image waits for memory."""
        return self._waiting[0].reading if self._waiting else None

    def _take(self) -> list[Work]:
        """The first request whose image is read and those of its model; the lock is held."""
        ready = [work for work in self._waiting if work.reading is not None and work.reading.done()]
        taken = [work for work in ready if work.batches is ready[0].batches][: self.batch_size]
        for work in taken:
            self._waiting.remove(work)
        self._read_ahead()
        return taken

    def _predict(self, batch: Sequence[Work]) -> None:
        running: list[tuple[Work, Prepared]] = []
        for work in batch:
            assert work.reading is not None
            prepared = work.reading.result()
            work.reading = None
            try:
                work.check()
            except RefusalError as error:
                prepared = error
            if isinstance(prepared, BaseException):
                self._close(work, prepared)
            else:
                running.append((work, prepared))
        if not running:
            return
        started = time.perf_counter()
        results = self._results(running)
        seconds = time.perf_counter() - started
        self.metrics.computed(self.name, len(running), seconds)
        self._mean += _SHARE * (seconds / len(running) - self._mean)
        for (work, _), result in zip(running, results, strict=True):
            work.batch = len(running)
            if isinstance(result, BaseException):
                self._close(work, result)
            else:
                self._writers.submit(self._write, work, result)

    def _results(self, running: Sequence[tuple[Work, Prepared]]) -> list[Any]:
        """Results of a batch, or an exception in the place of one."""
        batches = running[0][0].batches
        try:
            results = batches.predict([prepared for _, prepared in running])
        except Exception as error:
            if not is_out_of_memory(error):
                if not isinstance(error, FovealError | RefusalError):
                    _LOG.exception("%s: a network failed", self.name)
                return [error] * len(running)
            if len(running) > 1:
                return [self._results([each])[0] for each in running]
            results = [error]
        return [
            self._refused_for_memory() if isinstance(each, Exception) and is_out_of_memory(each) else each
            for each in results
        ]

    def _refused_for_memory(self) -> RefusalError:
        self.metrics.out_of_memory.inc()
        return busy("not enough memory for this image: try again later, or with a smaller one", "memory", 5)

    def _write(self, work: Work, result: Any) -> None:
        try:
            work.check()
            answer = work.write(result)
        except BaseException as error:
            if not isinstance(error, FovealError | RefusalError):
                _LOG.exception("%s: an answer cannot be written", self.name)
            self._close(work, error)
            return
        self._close(work, answer)

    def _close(self, work: Work, outcome: Any) -> None:
        """Give up the place in the queue, then answer."""
        with self._changed:
            self._open -= 1
            self._held -= work.held
            self._read_ahead()
            self._changed.notify()
        if isinstance(outcome, BaseException):
            work.fail(outcome)
        else:
            with suppress(InvalidStateError):
                work.future.set_result(outcome)


def _read(work: Work) -> Prepared | BaseException:
    """The prepared image, or what came instead of it."""
    try:
        work.check()
        return work.read()
    except MemoryError:
        return busy("not enough memory to read this image: try again later, or with a smaller one", "memory", 5)
    except Exception as error:
        if not isinstance(error, FovealError | RefusalError):
            _LOG.exception("an image cannot be read")
        return error
