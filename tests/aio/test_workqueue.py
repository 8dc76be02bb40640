"""The promises of the work queue."""

import asyncio

import pytest

from kone.aio.clock import FakeClock, settle
from kone.aio.workqueue import WorkQueue


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def queue(clock: FakeClock) -> WorkQueue[str]:
    return WorkQueue(clock)


async def test_a_key_added_twice_waits_once(queue: WorkQueue[str]) -> None:
    queue.add("a")
    queue.add("a")
    queue.add("b")
    assert [await queue.get(), await queue.get()] == ["a", "b"]
    assert len(queue) == 0


async def test_a_key_is_worked_on_by_one_worker_at_a_time(queue: WorkQueue[str]) -> None:
    queue.add("a")
    assert await queue.get() == "a"
    queue.add("a")
    assert len(queue) == 0
    queue.done("a")
    assert await queue.get() == "a"
    queue.done("a")
    assert queue.idle


async def test_get_waits_for_a_key(queue: WorkQueue[str]) -> None:
    getting = asyncio.create_task(queue.get())
    await settle()
    assert not getting.done()
    queue.add("a")
    assert await getting == "a"


async def test_a_cancelled_getter_loses_no_key(queue: WorkQueue[str]) -> None:
    first, second = asyncio.create_task(queue.get()), asyncio.create_task(queue.get())
    await settle()
    queue.add("a")
    first.cancel()
    assert await second == "a"


async def test_a_delayed_key_comes_when_it_is_due(queue: WorkQueue[str], clock: FakeClock) -> None:
    queue.add_after("late", 10)
    queue.add_after("early", 3)
    await clock.advance(2.9)
    assert len(queue) == 0
    await clock.advance(0.2)
    assert await queue.get() == "early"
    await clock.advance(10)
    assert await queue.get() == "late"


async def test_of_two_delays_the_earlier_counts(queue: WorkQueue[str], clock: FakeClock) -> None:
    queue.add_after("a", 10)
    queue.add_after("a", 1)
    queue.add_after("a", 20)
    await clock.advance(1)
    assert await queue.get() == "a"
    queue.done("a")
    await clock.advance(100)
    assert len(queue) == 0


async def test_failures_come_back_after_5_10_20_ms_up_to_1000_s(queue: WorkQueue[str], clock: FakeClock) -> None:
    delays = []
    for _ in range(20):
        delays.append(queue.add_backing_off("a"))
        await clock.advance(delays[-1])
        await queue.get()
        queue.done("a")
    assert delays[:4] == [0.005, 0.01, 0.02, 0.04]
    assert delays[-1] == 1000.0
    queue.forget("a")
    assert queue.add_backing_off("a") == 0.005


async def test_close_stops_the_timer(queue: WorkQueue[str], clock: FakeClock) -> None:
    queue.add_after("a", 1)
    queue.close()
    await clock.advance(2)
    assert len(queue) == 0
