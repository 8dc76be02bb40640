"""Writers of one object: in turn, each from the outcome of the one before, and each with its own fate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from kone.aio.clock import FakeClock
from kone.apimachinery.objects import deep_copy
from kone.apiserver.context import Answer
from kone.apiserver.lanes import Lanes, Plan, Planned, State
from kone.store.opening import open_store
from kone.store.store import Entry, Event, KeyMissing, RevisionConflict, Store, Write

KEY = "/registry/core/configmaps/ns/a"


class Lane:
    """One object with a counter, and the lane of its writers."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.lanes = Lanes(store)
        self.entry: Entry | None = None
        store.listen(self._hear)
        self.made = 0

    def _hear(self, events: Sequence[Event]) -> None:
        for event in events:
            self.entry = None if event.type == "DELETED" else event.entry

    def plan(self, amount: int = 1, *, fails: bool = False) -> Plan:
        async def make(state: State) -> Planned:
            await asyncio.sleep(0)
            self.made += 1
            if fails:
                raise ValueError("no")
            if not amount:
                return Planned(None, lambda event: Answer(event.obj if event else state.obj))
            obj = deep_copy(state.obj)
            obj["count"] += amount
            write = Write(KEY, obj, state.version)
            return Planned(write, lambda event: Answer(event.obj if event else {}))

        return make

    async def add(self, amount: int = 1, *, fails: bool = False) -> int:
        answer = await self.lanes.run(KEY, lambda: self.entry, self.plan(amount, fails=fails))
        return int(answer.obj["count"])


@pytest.fixture
async def lane() -> AsyncIterator[Lane]:
    store = await open_store("memory://", clock=FakeClock())
    made = Lane(store)
    await store.commit(Write(KEY, {"metadata": {"name": "a"}, "count": 0}, 0))
    yield made
    await store.close()


async def test_every_writer_counts_once_and_sees_its_own_outcome(lane: Lane) -> None:
    assert sorted(await asyncio.gather(*(lane.add() for _ in range(16)))) == list(range(1, 17))
    assert lane.made <= 17
    assert lane.entry is not None
    assert lane.entry.obj["count"] == 16


async def test_one_that_fails_does_not_stop_the_others(lane: Lane) -> None:
    results = await asyncio.gather(lane.add(), lane.add(), lane.add(fails=True), lane.add(), return_exceptions=True)
    assert [type(each).__name__ for each in results] == ["int", "int", "ValueError", "int"]
    assert lane.entry is not None
    assert lane.entry.obj["count"] == 3


async def test_one_that_changes_nothing_answers_with_what_is_there(lane: Lane) -> None:
    assert list(await asyncio.gather(lane.add(), lane.add(), lane.add(0))) == [1, 2, 2]
    revision = lane.store.revision
    assert await lane.add(0) == 2
    assert lane.store.revision == revision


async def test_who_gives_up_waiting_is_left_out(lane: Lane) -> None:
    first, second, third = [asyncio.create_task(lane.add()) for _ in range(3)]
    await asyncio.sleep(0)
    second.cancel()
    assert (await first, await third) == (1, 2)


async def test_an_outsider_who_is_faster(lane: Lane) -> None:
    async def interfered(state: State) -> Planned:
        await lane.store.commit(Write(KEY, {"metadata": {"name": "a"}, "count": 100}))
        return await lane.plan()(state)

    with pytest.raises(RevisionConflict):
        await lane.lanes.run(KEY, lambda: lane.entry, interfered)
    assert await lane.add() == 101


async def test_an_object_that_is_gone(lane: Lane) -> None:
    await lane.store.commit(Write(KEY, None))
    results = await asyncio.gather(lane.add(), lane.add(), return_exceptions=True)
    assert [type(each) for each in results] == [KeyMissing, KeyMissing]
    assert not lane.lanes._lanes
