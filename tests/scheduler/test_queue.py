"""When a waiting pod is tried: at once, after a back-off, after good news, or after five minutes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from kone.aio.clock import FakeClock, settle
from kone.scheduler.framework import ClusterEvent, Happened
from kone.scheduler.pod_info import PodInfo
from kone.scheduler.queue import QueuedPod, SchedulingQueue, backoff_s
from tests.scheduler.support import World, node, pod

GONE = ClusterEvent(Happened.POD_GONE, pod("gone", on="n1"), None)


class Queue:
    """A queue, its clock, and what has been popped."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.queue = SchedulingQueue({"default-scheduler": World().framework}, self.clock)

    async def tried(self) -> list[str]:
        """The names of all pods that would be tried now, in order; they stay in flight."""
        return [queued.info.name for queued in await self.pop_all()]

    async def pop_all(self) -> list[QueuedPod]:
        found: list[QueuedPod] = []
        while True:
            popping = asyncio.ensure_future(self.queue.pop())
            await settle()
            if not popping.done():
                popping.cancel()
                return found
            found.append(popping.result())

    async def fail(self, name: str = "p", *, times: int = 1, plugin: str = "NodeResourcesFit") -> QueuedPod:
        """A pod that has been tried in vain."""
        self.queue.add(PodInfo(pod(name)))
        queued = await self.queue.pop()
        for _ in range(times - 1):
            self.queue.requeue(queued, [plugin])
            self.queue.activate(queued.uid)
            queued = await self.queue.pop()
        self.queue.requeue(queued, [plugin])
        return queued


@pytest.fixture
async def q() -> AsyncIterator[Queue]:
    made = Queue()
    made.queue.start()
    await settle()
    yield made
    await made.queue.stop()


async def test_higher_priority_first_then_who_came_first(q: Queue) -> None:
    for name, priority in (("a", 0), ("b", 5), ("c", 0), ("d", 5)):
        q.queue.add(PodInfo(pod(name, priority=priority)))
        await q.clock.advance(1)
    assert await q.tried() == ["b", "d", "a", "c"]


async def test_who_waits_for_a_pod_gets_it_at_once(q: Queue) -> None:
    popping = asyncio.ensure_future(q.queue.pop())
    await settle()
    q.queue.add(PodInfo(pod("p")))
    assert (await popping).info.name == "p"


async def test_gates_hold_a_pod_until_they_are_gone(q: Queue) -> None:
    gated = pod("p", schedulingGates=[{"name": "g"}])
    q.queue.add(PodInfo(gated))
    assert await q.tried() == []
    free = {**gated, "spec": {**gated["spec"], "schedulingGates": []}}
    q.queue.update(PodInfo(free), [ClusterEvent(Happened.SELF_GATES, gated, free)])
    assert await q.tried() == ["p"]


async def test_news_wakes_only_whom_it_concerns(q: Queue) -> None:
    await q.fail("fit", plugin="NodeResourcesFit")
    await q.fail("taint", plugin="TaintToleration")
    await q.clock.advance(2)
    q.queue.move(GONE)
    assert await q.tried() == ["fit"]


async def test_good_news_ends_a_back_off_early_while_nothing_else_is_to_do(q: Queue) -> None:
    queued = await q.fail(times=4)
    q.queue.move(GONE)
    assert q.queue.place_of(queued.uid) == "backoff"
    assert await q.tried() == ["p"]


async def test_an_error_backs_off_in_full(q: Queue) -> None:
    q.queue.add(PodInfo(pod("p")))
    queued = await q.queue.pop()
    q.queue.requeue(queued, (), is_error=True)
    assert await q.tried() == []
    await q.clock.advance(0.9)
    assert await q.tried() == []
    await q.clock.advance(0.2)
    assert await q.tried() == ["p"]


async def test_what_nothing_wakes_is_tried_again_after_five_minutes(q: Queue) -> None:
    await q.fail()
    await q.clock.advance(299)
    assert await q.tried() == []
    await q.clock.advance(2)
    assert await q.tried() == ["p"]


async def test_a_pod_that_is_gone_is_not_tried(q: Queue) -> None:
    made = PodInfo(pod("p"))
    q.queue.add(made)
    q.queue.remove(made.uid)
    assert await q.tried() == []
    assert len(q.queue) == 0


async def test_a_change_of_the_pod_itself_may_help(q: Queue) -> None:
    queued = await q.fail(plugin="TaintToleration")
    await q.clock.advance(2)
    q.queue.update(queued.info, [ClusterEvent(Happened.SELF_LABELS)])
    assert await q.tried() == []
    q.queue.update(queued.info, [ClusterEvent(Happened.SELF_TOLERATIONS)])
    assert await q.tried() == ["p"]


async def test_where_there_was_no_node_any_node_is_good_news(q: Queue) -> None:
    q.queue.add(PodInfo(pod("p")))
    q.queue.requeue(await q.queue.pop(), ())
    q.queue.move(ClusterEvent(Happened.NODE_ADDED, None, node()))
    assert await q.tried() == ["p"]


@pytest.mark.parametrize(("failures", "seconds"), [(1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (50, 10)])
def test_back_off(failures: int, seconds: float) -> None:
    assert backoff_s(failures) == seconds
