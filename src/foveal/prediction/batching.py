"""Many images: threads read and prepare them ahead of the network, and those of one shape run as one batch."""

from __future__ import annotations

import logging
import math
import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, InputError, OutOfMemoryError
from .devices import cpu_count
from .runner import Runner

_READERS = 4  # threads at most: a network that takes longer than the decoding of an image needs no more
_HELD = 256 << 20  # bytes of prepared images that wait for the network, beyond which no further image is read
_LOG = logging.getLogger(__name__)


class Prepared(NamedTuple):
    """An image that is read, and what turns the network's output for it into its result.

    Attributes:
        image: input of the network, ``(1, C, h, w)``; ``None``: the network runs several times, within ``finish``.
        finish: output of the network ``(1, ...)``, or ``None`` without an ``image`` -> result.
        bytes: size of what it holds.
    """

    image: NDArray[np.float32] | None
    finish: Callable[[Any], Any]
    bytes: int

    def run(self, runner: Runner) -> Any:
        """The result of this image alone."""
        return self.finish(None if self.image is None else runner(self.image))


def check_batch_size(batch_size: int | None) -> None:
    """Refuse impossible numbers.

    Raises:
        ConfigError: less than 1.
    """
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"batch_size={batch_size}: give 1 or more")


class Batches:
    """Predicts images in batches, in their order, in bounded memory.

    Threads read and prepare images ahead of the network: up to one batch and one image for each thread, as far as they
    fit into 256 MiB; larger images are not read ahead. The calling thread iterates over the images and runs the
    network. Images whose inputs have the same shape are stacked if they are among the same ``batch_size`` images.

    Args:
        runner: the network.
        prepare: reads an image and prepares it; called in threads. Pillow images and open files, which threads cannot
            share, are prepared in the calling thread.
        batch_size: number of images that are stacked at most.
    """

    def __init__(self, runner: Runner, prepare: Callable[[Any], Prepared], batch_size: int) -> None:
        self.runner, self.prepare, self.batch_size = runner, prepare, batch_size
        self._largest = math.inf  # bytes of the largest image so far
        self._stacks = True  # whether the network takes several images at once, as far as known

    def run(self, images: Iterable[Any]) -> Iterator[Any | InputError]:
        """Yield the result of each image, or the error of an image that cannot be used.

        Raises:
            FovealError: other errors than InputError end the iteration.
        """
        threads = min(_READERS, cpu_count())
        source, waiting = iter(images), deque[Future[Prepared]]()
        pool = ThreadPoolExecutor(threads, thread_name_prefix="foveal-read")
        try:
            while True:
                self._read(pool, source, waiting, self.batch_size)
                if not waiting:
                    return
                batch = self._next_batch(waiting, lambda: self._read(pool, source, waiting, self.batch_size + threads))
                yield from self.predict(batch)
                del batch  # while the next one is awaited
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def run_one(self, image: Any) -> Any | InputError:
        """The result of one image, in the calling thread, or its error."""
        try:
            return self.prepare(image).run(self.runner)
        except InputError as error:
            return error

    def _read(
        self, pool: ThreadPoolExecutor, source: Iterator[Any], waiting: deque[Future[Prepared]], count: int
    ) -> None:
        """Let the threads read until ``count`` images wait; those beyond a batch only as far as memory allows."""
        ahead = count > self.batch_size
        while len(waiting) < count and not (ahead and self._expected_bytes(waiting) > _HELD):
            try:
                image = next(source)
            except StopIteration:
                return
            if isinstance(image, str | os.PathLike | bytes | np.ndarray):
                waiting.append(pool.submit(self.prepare, image))
            else:
                waiting.append(_done(self.prepare, image))

    def _expected_bytes(self, waiting: Iterable[Future[Prepared]]) -> float:
        """Bytes of the images that wait and of one more; those not read yet are taken for as large as any before."""
        ready = (future.done() and future.exception() is None for future in waiting)
        sizes = (future.result().bytes if done else self._largest for future, done in zip(waiting, ready, strict=True))
        return sum(sizes) + self._largest

    def _next_batch(
        self, waiting: deque[Future[Prepared]], read_ahead: Callable[[], None]
    ) -> list[Prepared | InputError]:
        """Wait for the images of the next batch, and start to read those after it."""
        futures = [waiting.popleft() for _ in range(min(self.batch_size, len(waiting)))]
        if self._largest < math.inf:  # else nothing is known of their sizes
            read_ahead()
        batch = [_outcome(future) for future in futures]
        sizes = [item.bytes for item in batch if isinstance(item, Prepared)]
        if sizes:
            self._largest = max(*sizes, self._largest if self._largest < math.inf else 0)
        read_ahead()
        return batch

    def predict(self, batch: Sequence[Prepared | InputError]) -> list[Any | InputError]:
        """Results and errors of one batch, in order: one run of the network for each shape.

        Args:
            batch: prepared images, of any shapes; an error stays in its place.

        Raises:
            FovealError: other errors than InputError, which the network has for all of its images.
        """
        results: list[Any] = list(batch)
        shapes: defaultdict[tuple[int, ...], list[tuple[int, Prepared]]] = defaultdict(list)
        for index, item in enumerate(batch):
            if not isinstance(item, InputError):
                shapes[() if item.image is None else item.image.shape].append((index, item))
        for group in shapes.values():
            outputs = self._stacked([item.image for _, item in group if item.image is not None])
            for place, (index, item) in enumerate(group):
                try:
                    results[index] = item.run(self.runner) if outputs is None else item.finish(outputs[place])
                except InputError as error:
                    results[index] = error
        return results

    def _stacked(self, images: list[NDArray[np.float32]]) -> list[NDArray[np.float32]] | None:
        """The network's output for each image, all of one shape; ``None``: they have to run one by one."""
        if len(images) <= 1 or not self._stacks:
            return None
        with suppress(InputError):  # one by one, the image that cannot be used has the error alone
            try:
                outputs = self.runner(np.concatenate(images))
            except OutOfMemoryError:  # a smaller batch may run, and the next one of this size, too
                return None
            if len(outputs) == len(images):
                return [outputs[index : index + 1] for index in range(len(images))]
        self._stacks = False
        _LOG.warning("the network cannot run on %d images at once: they run one by one", len(images))
        return None


def _outcome(future: Future[Prepared]) -> Prepared | InputError:
    try:
        return future.result()
    except InputError as error:
        return error


def _done(prepare: Callable[[Any], Prepared], image: Any) -> Future[Prepared]:
    future: Future[Prepared] = Future()
    try:
        future.set_result(prepare(image))
    except Exception as error:  # where the image has its turn
        future.set_exception(error)
    return future
