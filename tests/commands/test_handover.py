"""Items reach the thread that consumes them in order, and an error on either side ends both."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from foveal.commands.handover import consume_in_thread


def test_items_arrive_in_order_in_another_thread() -> None:
    def consume(items: Iterator[int]) -> tuple[list[int], int]:
        return list(items), threading.get_ident()

    found, thread = consume_in_thread(range(100), consume)
    assert found == list(range(100))
    assert thread != threading.get_ident()
    assert consume_in_thread([], list) == []


def test_making_and_using_overlap() -> None:
    """The second item is made while the first one is in use; without overlap the consumer would wait for ever."""
    made = [threading.Event() for _ in range(3)]

    def items() -> Iterator[int]:
        for index, event in enumerate(made):
            event.set()
            yield index

    def consume(received: Iterator[int]) -> list[int]:
        return [index for index in received if made[min(index + 1, 2)].wait(60)]

    assert consume_in_thread(items(), consume) == [0, 1, 2]


def test_a_failing_consumer_ends_the_items() -> None:
    def items() -> Iterator[int]:
        index = 0
        while True:
            yield (index := index + 1)

    def consume(received: Iterator[int]) -> None:
        raise ValueError(f"item {next(received)}")

    with pytest.raises(ValueError, match="item 1"):
        consume_in_thread(items(), consume)


def test_failing_items_end_the_consumer() -> None:
    ends: list[str] = []

    def items() -> Iterator[int]:
        yield 1
        raise KeyError("made")

    def consume(received: Iterator[int]) -> None:
        try:
            list(received)
        except Exception as error:
            ends.append(type(error).__name__)
            raise

    with pytest.raises(KeyError, match="made"):
        consume_in_thread(items(), consume)
    assert len(ends) == 1
