"""The ring that many read: order, wake-ups, and what becomes of the slow."""

from __future__ import annotations

import asyncio

import pytest

from kone.aio.broadcast import Reader, Ring
from kone.aio.clock import settle


def ring(*items: int) -> Ring[int]:
    made: Ring[int] = Ring()
    made.publish(items)
    return made


def test_positions_stay_when_old_items_go() -> None:
    numbers = ring(10, 11, 12, 13)
    assert numbers.trim(2) == [10, 11]
    assert (numbers.first, numbers.end, numbers[2], numbers.since(3), numbers.since(0)) == (2, 4, 12, [13], [12, 13])
    with pytest.raises(IndexError):
        numbers[1]


def test_a_position_is_found_by_halving() -> None:
    numbers = ring(10, 20, 30)
    numbers.trim(1)
    assert [numbers.bisect(lambda n, low=low: n > low) for low in (5, 20, 25, 30)] == [1, 2, 2, 3]  # type: ignore[misc]


def test_a_reader_takes_what_came_since_its_last_look() -> None:
    numbers = ring(1)
    reader = Reader(numbers, numbers.end, max_lag=10)
    assert reader.get_nowait() == []
    numbers.publish([2, 3])
    assert (reader.lag, reader.get_nowait(1), reader.get_nowait(), reader.get_nowait()) == (2, [2], [3], [])


async def test_waiting_readers_get_a_batch_at_once() -> None:
    numbers = ring()
    readers = [Reader(numbers, 0, max_lag=10) for _ in range(3)]
    waiting = [asyncio.create_task(reader.get()) for reader in readers]
    await settle()
    numbers.publish([1, 2])
    assert await asyncio.gather(*waiting) == [[1, 2]] * 3


async def test_waiting_ends_with_its_time_and_leaves_nothing_behind() -> None:
    numbers = ring()
    reader = Reader(numbers, 0, max_lag=10)
    assert await reader.get(timeout_s=0.001) == []
    assert not reader.ended
    assert numbers._waiting == {}


async def test_a_cancelled_reader_leaves_nothing_behind() -> None:
    numbers = ring()
    waiting = asyncio.create_task(Reader(numbers, 0, max_lag=10).get())
    await settle()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert numbers._waiting == {}


async def test_closing_a_reader_ends_its_waiting() -> None:
    reader = Reader(ring(), 0, max_lag=10)
    waiting = asyncio.create_task(reader.get())
    await settle()
    reader.close()
    assert (await waiting, reader.ended, reader.dropped) == ([], True, False)


async def test_closing_the_ring_ends_readers_after_the_last_item() -> None:
    numbers = ring(1)
    reader = Reader(numbers, 0, max_lag=10)
    numbers.close()
    assert not reader.ended
    assert (await reader.get(), reader.ended, await reader.get()) == ([1], True, [])


def test_a_reader_that_lags_too_much_is_dropped() -> None:
    numbers = ring()
    reader = Reader(numbers, 0, max_lag=2)
    numbers.publish([1, 2, 3])
    assert (reader.get_nowait(), reader.dropped, reader.ended) == ([], True, True)


def test_a_reader_whose_items_were_let_go_is_dropped() -> None:
    numbers = ring(1, 2)
    reader = Reader(numbers, 0, max_lag=10)
    numbers.trim(1)
    assert (reader.get_nowait(), reader.dropped) == ([], True)


def test_a_reader_that_has_read_all_does_not_mind_the_trimming() -> None:
    numbers = ring(1, 2)
    reader = Reader(numbers, 2, max_lag=10)
    numbers.trim(2)
    numbers.publish([3])
    assert reader.get_nowait() == [3]
