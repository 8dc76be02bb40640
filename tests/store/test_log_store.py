"""The writer: whole queues in one transaction, failures that lose nothing, heartbeats off the disk. Over a log in a
list."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kone.aio.clock import FakeClock, settle
from kone.apimachinery.objects import Object
from kone.store.log import Row
from kone.store.log_store import BATCH_WRITES, DECODED_EVENTS, LOOK_EVERY_S, RESERVE, LogStore
from kone.store.store import DatastoreFailed, Event, KeyExists, Retention, Write
from tests.store.fake_log import FakeLog

KEY = "/registry/core/configmaps/default/a"
LEASE = "/registry/coordination.k8s.io/leases/kube-node-lease/node"


def obj(**data: Any) -> Object:
    return {"metadata": {"name": "a"}, "data": data}


@pytest.fixture
def log() -> FakeLog:
    return FakeLog()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


async def opened(log: FakeLog, clock: FakeClock, **retention: Any) -> LogStore:
    return await LogStore.load(log, Retention(**retention), clock, protect=True)


async def crash(store: LogStore) -> None:
    """The process ends here: nothing more reaches the log."""
    for task in (store._writer, store._janitor):
        assert task is not None
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_writers_that_queue_while_one_commits_share_the_next_transaction(log: FakeLog, clock: FakeClock) -> None:
    store = await opened(log, clock)
    first = asyncio.create_task(store.commit(Write(KEY, obj())))
    await settle(3)
    await asyncio.gather(first, *(store.commit(Write(f"{KEY}{n}", obj())) for n in range(15)))
    assert log.transactions == [1, 15]
    await store.close()


async def test_a_transaction_has_a_largest_size(log: FakeLog, clock: FakeClock) -> None:
    store = await opened(log, clock)
    await asyncio.gather(*(store.commit(Write(f"{KEY}{n}", obj())) for n in range(BATCH_WRITES + 5)))
    assert log.transactions == [BATCH_WRITES, 5]
    await store.close()


async def test_an_object_that_is_no_json_fails_alone(log: FakeLog, clock: FakeClock) -> None:
    store = await opened(log, clock)
    bad, good = await asyncio.gather(
        store.commit(Write(f"{KEY}1", obj()), Write(KEY, obj(x=object()))),
        store.commit(Write(KEY, obj(x=1))),
        return_exceptions=True,
    )
    assert isinstance(bad, TypeError)
    assert isinstance(good, list)
    assert [row.key for row in log.stored.values()] == [KEY]
    await store.close()


class TestFailure:
    """The database refuses a transaction, before or after it has stored it: the caller is told, and the state stays
    true."""

    async def test_nothing_is_shown_of_a_transaction_that_failed(self, log: FakeLog, clock: FakeClock) -> None:
        store = await opened(log, clock)
        heard: list[Event] = []
        store.listen(heard.extend)
        log.fail_next = "before"
        with pytest.raises(DatastoreFailed, match="the disk is full"):
            await store.commit(Write(KEY, obj()))
        assert (store.revision, heard, await store.get(KEY)) == (1, [], None)
        await store.close()

    async def test_its_revision_is_not_given_again(self, log: FakeLog, clock: FakeClock) -> None:
        store = await opened(log, clock)
        log.fail_next = "before"
        with pytest.raises(DatastoreFailed):
            await store.commit(Write(KEY, obj()))
        [event] = await store.commit(Write(KEY, obj(), expected=0))
        assert event.revision == 3
        await store.close()

    async def test_a_commit_that_was_stored_although_it_failed_is_found_before_the_next(
        self, log: FakeLog, clock: FakeClock
    ) -> None:
        store = await opened(log, clock)
        heard: list[Event] = []
        store.listen(heard.extend)
        log.fail_next = "after"
        with pytest.raises(DatastoreFailed):
            await store.commit(Write(KEY, obj(x=1)))
        with pytest.raises(KeyExists):
            await store.commit(Write(KEY, obj(x=2), expected=0))
        assert [(event.type, event.revision) for event in heard] == [("ADDED", 2)]
        await store.close()

    async def test_writes_go_on_when_the_disk_is_back(self, log: FakeLog, clock: FakeClock) -> None:
        store = await opened(log, clock)
        log.broken = True
        for _ in range(2):
            with pytest.raises(DatastoreFailed):
                await store.commit(Write(KEY, obj()))
        log.broken = False
        [event] = await store.commit(Write(KEY, obj()))
        assert event.type == "ADDED"
        await store.close()

    async def test_compaction_that_fails_is_tried_again_and_stops_no_write(
        self, log: FakeLog, clock: FakeClock
    ) -> None:
        store = await opened(log, clock, max_events=1)
        for n in range(4):
            await store.commit(Write(KEY, obj(n=n)))
        log.broken = True
        await clock.advance(LOOK_EVERY_S)
        await asyncio.sleep(0.05)
        log.broken = False
        assert len(log.stored) == 4
        await store.commit(Write(KEY, obj(n=5)))
        await clock.advance(LOOK_EVERY_S)
        await asyncio.sleep(0.05)
        assert [row.revision for row in log.stored.values()] == [5, 6]
        await store.close()


async def test_a_row_of_another_writer_is_taken_in_before_ours_is_tried_again(log: FakeLog, clock: FakeClock) -> None:
    store = await opened(log, clock)
    heard: list[Event] = []
    store.listen(heard.extend)
    log.stored[2] = Row(2, KEY, 0, 0, b'{"metadata":{"name":"a","resourceVersion":"2"},"data":{}}')
    [event] = await store.commit(Write(f"{KEY}b", obj()))
    assert [(event.revision, event.key) for event in heard] == [(2, KEY), (event.revision, f"{KEY}b")]
    with pytest.raises(KeyExists):
        await store.commit(Write(KEY, obj(), expected=0))
    await store.close()


class TestHeartbeats:
    """Volatile writes: off the disk, and yet no revision is ever given twice."""

    async def beat(self, store: LogStore, times: int) -> int:
        for n in range(times):
            [event] = await store.commit(Write(LEASE, obj(n=n), volatile=True))
        return event.revision

    async def test_only_the_first_is_stored(self, log: FakeLog, clock: FakeClock) -> None:
        store = await opened(log, clock)
        await self.beat(store, 100)
        assert log.transactions == [1]
        await store.close()

    async def test_revisions_are_reserved_in_steps(self, log: FakeLog, clock: FakeClock) -> None:
        store = await opened(log, clock)
        last = await self.beat(store, 2)
        assert log.kept.reserved == last + RESERVE
        last = await self.beat(store, RESERVE + 1)
        assert last < log.kept.reserved <= last + RESERVE
        assert not log.kept.clean
        await store.close()

    async def test_a_crash_skips_ahead_of_every_revision_that_was_given(self, log: FakeLog, clock: FakeClock) -> None:
        store = await opened(log, clock)
        given = await self.beat(store, 50)
        await crash(store)
        store = await opened(log, clock)
        assert store.revision > given
        await store.close()

    async def test_after_a_crash_watchers_see_the_state_go_back_under_a_new_revision(
        self, log: FakeLog, clock: FakeClock
    ) -> None:
        store = await opened(log, clock)
        given = await self.beat(store, 50)
        await crash(store)
        store = await opened(log, clock)
        entry = await store.get(LEASE)
        assert entry is not None
        assert (entry.obj["data"], entry.revision) == ({"n": 0}, store.revision)
        assert [(event.type, event.revision) async for event in _first(store, after=given)] == [
            ("MODIFIED", store.revision)
        ]
        await store.close()

    async def test_a_clean_restart_keeps_the_last_and_skips_nothing(self, log: FakeLog, clock: FakeClock) -> None:
        store = await opened(log, clock)
        given = await self.beat(store, 50)
        await store.close()
        store = await opened(log, clock)
        entry = await store.get(LEASE)
        assert entry is not None
        assert (entry.obj["data"], entry.revision, store.revision) == ({"n": 49}, given, given)
        await self.beat(store, 3)
        await store.close()

    async def test_a_change_that_is_no_heartbeat_is_stored(self, log: FakeLog, clock: FakeClock) -> None:
        store = await opened(log, clock)
        await self.beat(store, 3)
        await store.commit(Write(LEASE, obj(holder="other")))
        await crash(store)
        store = await opened(log, clock)
        entry = await store.get(LEASE)
        assert entry is not None
        assert entry.obj["data"] == {"holder": "other"}
        await store.close()

    async def test_an_object_that_was_stored_as_lasting_stays_so_until_a_first_heartbeat_is_stored(
        self, log: FakeLog, clock: FakeClock
    ) -> None:
        store = await opened(log, clock)
        await store.commit(Write(LEASE, obj()))
        await self.beat(store, 2)
        assert log.transactions == [1, 1]
        await store.close()


async def _first(store: LogStore, *, after: int) -> Any:
    async for event in store.watch("/", after=after):
        yield event
        return


async def test_states_that_only_old_history_remembers_keep_their_bytes_alone(log: FakeLog, clock: FakeClock) -> None:
    store = await opened(log, clock)
    await store.commit(*(Write(KEY, obj(n=n)) for n in range(DECODED_EVENTS + 10)))
    history = store.history()
    assert history[0].entry._obj is None
    assert history[0].obj["data"] == {"n": 0}
    assert history[-2].entry._obj is not None
    assert history[-1].entry._obj is not None
    await store.close()


async def test_a_burst_does_not_wait_for_the_janitor(log: FakeLog, clock: FakeClock) -> None:
    store = await opened(log, clock, max_events=100)
    for n in range(200):
        await store.commit(Write(KEY, obj(n=n)))
    assert len(store.history()) <= 125
    await store.commit(Write(KEY, obj()))
    assert len(log.stored) < 200
    await store.close()
