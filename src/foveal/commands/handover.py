"""Hand items to a thread that consumes them: the network makes the next band of a picture while one is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Full, Queue
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
_SECONDS = 0.1  # after which the calling thread looks whether the other one has failed
_END, _FAILED = object(), object()  # what follows the last item


class _GivenUpError(Exception):
    """The items end early, because making them failed."""


def consume_in_thread(items: Iterable[T], consume: Callable[[Iterator[T]], R]) -> R:
    """Call ``consume`` in a thread with an iterator over ``items``, which the calling thread makes.

    One item waits at most. Where either side fails, the other ends, too: ``consume`` gets an exception from its
    iterator, and no further item is made.

    Args:
        items: what is handed over.
        consume: uses the items up.

    Returns:
        What ``consume`` returns.

    Raises:
        Exception: that of ``items``, else that of ``consume``.
    """
    channel: Queue[Any] = Queue(1)
    with ThreadPoolExecutor(1, thread_name_prefix="foveal-write") as pool:
        future = pool.submit(consume, _received(channel))
        try:
            for item in items:
                _put(channel, item, future)
                if future.done():
                    break
        except BaseException:
            _put(channel, _FAILED, future)
            raise
        _put(channel, _END, future)
        return future.result()


def _put(channel: Queue[Any], item: Any, future: Future[Any]) -> None:
    """Wait until there is room for the item, unless the consumer has ended."""
    while not future.done():
        try:
            channel.put(item, timeout=_SECONDS)
        except Full:
            continue
        return


def _received(channel: Queue[Any]) -> Iterator[Any]:
    while (item := channel.get()) is not _END:
        if item is _FAILED:
            raise _GivenUpError
        yield item
