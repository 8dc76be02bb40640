"""The Store's contract, over every database that keeps it: a SQLite file, SQLite in memory, PostgreSQL, and the tests'
fake log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import orjson
import pytest

from kone.aio.clock import FakeClock, settle
from kone.apimachinery.objects import Object, replace_in
from kone.store.log_store import LOOK_EVERY_S, LogStore
from kone.store.opening import open_store
from kone.store.store import (
    Compacted,
    Event,
    FutureRevision,
    KeyExists,
    KeyMissing,
    Retention,
    RevisionConflict,
    Store,
    StoreClosed,
    StoreError,
    Write,
    key_for,
    prefix_for,
)
from tests.contracts.postgres import postgres_server
from tests.store.fake_log import FakeLog

PODS = prefix_for("", "pods")


def pod(name: str, **labels: str) -> Object:
    return {"kind": "Pod", "metadata": {"name": name, "namespace": "default", "labels": labels}}


def key(name: str) -> str:
    return key_for("", "pods", "default", name)


def seen(events: Sequence[Event]) -> list[tuple[str, int, str]]:
    return [(event.type, event.revision, event.key.rpartition("/")[2]) for event in events]


class Open(Protocol):
    async def __call__(self, retention: Retention | None = None) -> Store: ...


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    with postgres_server() as server:
        yield server.url


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(
    params=["fake", "memory", "sqlite", pytest.param("postgresql", marks=pytest.mark.ring3)],
)
def database(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def open_(database: str, request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> AsyncIterator[Open]:
    """Opens the store of this test; again, and it is the same one after a restart."""
    opened: list[Store] = []
    fake = FakeLog()
    url = {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path}/kone.db"}.get(database, "")
    if database == "postgresql":
        url = request.getfixturevalue("postgres")
        await _emptied(url)

    async def open_it(retention: Retention | None = None) -> Store:
        if database == "fake":
            store: Store = await LogStore.load(fake, retention or Retention(), clock, protect=True)
        else:
            store = await open_store(url, retention=retention, clock=clock)
        opened.append(store)
        return store

    yield open_it
    for store in opened:
        await store.close()


async def _emptied(url: str) -> None:
    import asyncpg

    connection = await asyncpg.connect(url)
    await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    await connection.close()


@pytest.fixture
async def store(open_: Open) -> Store:
    return await open_()


async def take(store: Store, count: int, *, after: int, prefix: str = PODS) -> list[Event]:
    """The next `count` events of a watch."""
    events: list[Event] = []
    async for event in store.watch(prefix, after=after):
        events.append(event)
        if len(events) == count:
            break
    return events


# Writes


async def test_a_new_store_is_at_revision_1_and_empty(store: Store) -> None:
    assert (store.revision, (await store.list(PODS)).entries) == (1, [])


async def test_a_write_gets_the_next_revision_in_its_bytes_and_leaves_the_callers_object_alone(store: Store) -> None:
    obj = pod("a")
    [event] = await store.commit(Write(key("a"), obj, expected=0))
    assert seen([event]) == [("ADDED", 2, "a")]
    assert event.obj == replace_in(obj, ("metadata", "resourceVersion"), "2")
    assert orjson.loads(event.encoded) == event.obj
    assert "resourceVersion" not in obj["metadata"]
    entry = await store.get(key("a"))
    assert entry is not None
    assert (entry.revision, entry.encoded) == (2, event.encoded)
    assert store.revision == 2


async def test_who_is_cancelled_while_it_commits_hears_the_outcome_first(store: Store) -> None:
    heard: list[str] = []

    async def commit(name: str, expected: int) -> None:
        try:
            [event] = await store.commit(Write(key(name), pod(name), expected))
            heard.append(f"{name} at {event.revision}")
        except RevisionConflict:
            heard.append(f"{name} refused")
        await asyncio.sleep(0)
        heard.append("not cancelled")

    for expected in (0, 77):
        task = asyncio.create_task(commit("a", expected))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
    assert heard == ["a at 2", "a refused"]
    assert await store.get(key("a")) is not None


async def test_a_time_limit_around_a_commit_holds_after_it(store: Store) -> None:
    async def commit_in_no_time() -> None:
        async with asyncio.timeout(0):
            await store.commit(Write(key("a"), pod("a")))
            await asyncio.sleep(0)

    with pytest.raises(TimeoutError):
        await commit_in_no_time()
    assert await store.get(key("a")) is not None


async def test_a_change_tells_what_it_replaced(store: Store) -> None:
    [made] = await store.commit(Write(key("a"), pod("a")))
    [changed] = await store.commit(Write(key("a"), pod("a", app="web"), expected=made.revision))
    assert seen([changed]) == [("MODIFIED", 3, "a")]
    assert changed.previous == made.obj


async def test_a_deletion_shows_the_last_state_at_its_own_revision(store: Store) -> None:
    [made] = await store.commit(Write(key("a"), pod("a", app="web")))
    [gone] = await store.commit(Write(key("a"), None, expected=made.revision))
    assert seen([gone]) == [("DELETED", 3, "a")]
    assert gone.obj == replace_in(made.obj, ("metadata", "resourceVersion"), "3")
    assert gone.previous == made.obj
    assert await store.get(key("a")) is None


async def test_what_was_deleted_can_be_made_again(store: Store) -> None:
    for revision in range(2, 12, 2):
        assert seen(await store.commit(Write(key("a"), pod("a"), expected=0))) == [("ADDED", revision, "a")]
        await store.commit(Write(key("a"), None))


@pytest.mark.parametrize(
    ("exists", "write", "refusal"),
    [
        (False, Write(key("a"), pod("a"), expected=7), KeyMissing),
        (False, Write(key("a"), None), KeyMissing),
        (False, Write(key("a"), None, expected=7), KeyMissing),
        (True, Write(key("a"), pod("a"), expected=0), KeyExists),
        (True, Write(key("a"), pod("a"), expected=7), RevisionConflict),
        (True, Write(key("a"), None, expected=7), RevisionConflict),
    ],
    ids=["change nothing", "delete nothing", "delete nothing at 7", "make again", "change another", "delete another"],
)
async def test_a_write_that_expects_something_else_is_refused(
    store: Store, exists: bool, write: Write, refusal: type[StoreError]
) -> None:
    if exists:
        await store.commit(Write(key("a"), pod("a")))
    before = (store.revision, await store.get(key("a")))
    with pytest.raises(refusal):
        await store.commit(write)
    assert (store.revision, await store.get(key("a"))) == before


async def test_a_conflict_says_which_revision_is_there(store: Store) -> None:
    await store.commit(Write(key("a"), pod("a")))
    with pytest.raises(RevisionConflict) as conflict:
        await store.commit(Write(key("a"), pod("a"), expected=9))
    assert conflict.value.actual == 2


async def test_several_writes_are_all_done_or_none(store: Store) -> None:
    await store.commit(Write(key("b"), pod("b")))
    with pytest.raises(KeyExists):
        await store.commit(
            Write(key("a"), pod("a"), expected=0),
            Write(key("a"), pod("a", n="2")),
            Write(key("b"), pod("b"), expected=0),
        )
    assert (await store.get(key("a")), store.revision) == (None, 2)
    events = await store.commit(Write(key("a"), pod("a"), expected=0), Write(key("b"), None), Write(key("a"), None))
    assert seen(events) == [("ADDED", 3, "a"), ("DELETED", 4, "b"), ("DELETED", 5, "a")]


async def test_of_writers_that_queue_together_only_the_refused_one_fails(store: Store) -> None:
    results = await asyncio.gather(
        store.commit(Write(key("a"), pod("a"), expected=0)),
        store.commit(Write(key("a"), pod("a", late="yes"), expected=0)),
        store.commit(Write(key("b"), pod("b"), expected=0), Write(key("a"), None, expected=99)),
        store.commit(Write(key("c"), pod("c"), expected=0)),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [list, KeyExists, RevisionConflict, list]
    page = await store.list(PODS)
    assert [(entry.key, entry.revision) for entry in page.entries] == [(key("a"), 2), (key("c"), 3)]


async def test_a_counter_that_many_change_at_once_misses_no_step(store: Store) -> None:
    await store.commit(Write(key("n"), {"metadata": {"name": "n"}, "count": 0}))

    async def add_one() -> None:
        while True:
            entry = await store.get(key("n"))
            assert entry is not None
            changed = replace_in(entry.obj, ("count",), entry.obj["count"] + 1)
            try:
                await store.commit(Write(key("n"), changed, expected=entry.revision))
            except RevisionConflict:
                continue
            return

    await asyncio.gather(*(add_one() for _ in range(20)))
    entry = await store.get(key("n"))
    assert entry is not None
    assert entry.obj["count"] == 20


async def test_listeners_have_seen_every_event_in_order_when_a_commit_returns(store: Store) -> None:
    heard: list[Event] = []
    store.listen(heard.extend)

    async def write(name: str) -> None:
        [event] = await store.commit(Write(key(name), pod(name)))
        assert event in heard
        assert store.revision >= event.revision

    await asyncio.gather(*(write(f"p{n}") for n in range(50)))
    assert [event.revision for event in heard] == list(range(2, 52))


async def test_a_listener_that_fails_stops_nobody(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Event] = []

    def broken(events: Sequence[Event]) -> None:
        raise ValueError("oh")

    store.listen(broken)
    store.listen(heard.extend)
    await store.commit(Write(key("a"), pod("a")))
    assert seen(heard) == [("ADDED", 2, "a")]
    assert "a listener failed" in caplog.text


async def test_a_caller_that_is_cancelled_does_not_undo_its_write(store: Store) -> None:
    caller = asyncio.create_task(store.commit(Write(key("a"), pod("a"))))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await store.commit(Write(key("b"), pod("b")))
    assert [entry.key for entry in (await store.list(PODS)).entries] == [key("a"), key("b")]


async def test_nobody_can_change_what_is_stored(store: Store) -> None:
    [event] = await store.commit(Write(key("a"), {"metadata": {"name": "a"}, "items": [{"x": 1}]}))
    changes: list[Any] = [
        lambda: event.obj["metadata"].update(name="b"),
        lambda: event.obj["items"].append(2),
        lambda: event.obj["items"][0].__setitem__("x", 2),
        lambda: event.obj.pop("items"),
    ]
    for change in changes:
        with pytest.raises(TypeError, match="read-only"):
            change()


async def test_a_closed_store_takes_no_writes_but_finishes_those_it_has(open_: Open) -> None:
    store = await open_()
    writes = [asyncio.create_task(store.commit(Write(key(f"p{n}"), pod(f"p{n}")))) for n in range(5)]
    await asyncio.sleep(0)
    await store.close()
    await store.close()
    assert [seen(await write) for write in writes] == [[("ADDED", n + 2, f"p{n}")] for n in range(5)]
    with pytest.raises(StoreClosed):
        await store.commit(Write(key("late"), pod("late")))


# Lists


async def test_a_list_is_in_the_order_of_keys_and_continues_after_one(store: Store) -> None:
    await store.commit(*(Write(key(name), pod(name)) for name in ("c", "a", "d", "b")))
    await store.commit(Write(key_for("", "podtemplates", "default", "x"), pod("x")))
    first = await store.list(PODS, limit=3)
    assert ([entry.key for entry in first.entries], first.remaining, first.more) == (
        [key("a"), key("b"), key("c")],
        1,
        True,
    )
    rest = await store.list(PODS, limit=3, after=first.entries[-1].key, revision=first.revision)
    assert ([entry.key for entry in rest.entries], rest.remaining, rest.more) == ([key("d")], 0, False)


async def test_a_list_at_an_older_revision_shows_the_world_of_then(store: Store) -> None:
    await store.commit(Write(key("a"), pod("a", v="1")), Write(key("b"), pod("b")))  # 2, 3
    await store.commit(Write(key("a"), pod("a", v="2")), Write(key("b"), None), Write(key("c"), pod("c")))  # 4, 5, 6
    await store.commit(Write(key("c"), None))  # 7

    async def world(revision: int) -> list[tuple[str, int]]:
        page = await store.list(PODS, revision=revision)
        assert page.revision == revision
        return [(entry.key.rpartition("/")[2], entry.revision) for entry in page.entries]

    assert [await world(revision) for revision in range(1, 8)] == [
        [],
        [("a", 2)],
        [("a", 2), ("b", 3)],
        [("a", 4), ("b", 3)],
        [("a", 4)],
        [("a", 4), ("c", 6)],
        [("a", 4)],
    ]


async def test_a_list_at_a_revision_that_has_not_come_is_refused(store: Store) -> None:
    with pytest.raises(FutureRevision) as refusal:
        await store.list(PODS, revision=2)
    assert refusal.value.current == 1


# Watches


async def test_a_watch_gives_every_later_event_in_order_and_none_twice(store: Store) -> None:
    await store.commit(Write(key("a"), pod("a")))
    await store.commit(Write(key("b"), pod("b")))
    watch = asyncio.create_task(take(store, 4, after=2))
    await settle()
    await store.commit(Write(key_for("", "secrets", "default", "s"), pod("s")))
    await store.commit(Write(key("a"), pod("a", v="2")), Write(key("b"), None))
    await store.commit(Write(key("b"), pod("b")))
    assert seen(await watch) == [("ADDED", 3, "b"), ("MODIFIED", 5, "a"), ("DELETED", 6, "b"), ("ADDED", 7, "b")]


async def test_a_watch_from_the_future_is_refused(store: Store) -> None:
    with pytest.raises(FutureRevision):
        await take(store, 1, after=store.revision + 1)


# History is bounded


async def let_go(clock: FakeClock) -> None:
    await clock.advance(LOOK_EVERY_S)


async def compacted(store: Store, oldest: int) -> None:
    """Wait until the writer has done its steps as far as the world can see: the next commits are answered after
    them."""
    assert store.oldest == oldest
    for _ in range(20):
        await store.commit(Write("/registry/core/x/probe", {}))


async def test_history_keeps_so_many_events(open_: Open, clock: FakeClock) -> None:
    store = await open_(Retention(max_events=3))
    for n in range(6):
        await store.commit(Write(key("a"), pod("a", n=str(n))))
    await let_go(clock)
    assert (store.oldest, store.revision) == (4, 7)
    assert [event.revision for event in await take(store, 3, after=4)] == [5, 6, 7]
    assert [entry.revision for entry in (await store.list(PODS, revision=4)).entries] == [4]
    for attempt in (take(store, 1, after=3), store.list(PODS, revision=3)):
        with pytest.raises(Compacted) as refusal:
            await attempt
        assert refusal.value.oldest == 4


async def test_history_keeps_so_many_bytes(open_: Open, clock: FakeClock) -> None:
    store = await open_(Retention(max_bytes=2500))
    for n in range(5):
        await store.commit(Write(key("a"), pod("a", fill="x" * 1000, n=str(n))))
    await let_go(clock)
    assert (store.oldest, store.revision) == (4, 6)


async def test_history_keeps_so_many_seconds(open_: Open, clock: FakeClock) -> None:
    store = await open_(Retention(max_age_s=60))
    await store.commit(Write(key("a"), pod("a")))
    await clock.advance(50)
    await store.commit(Write(key("b"), pod("b")))
    await clock.advance(25)
    assert (store.oldest, store.revision) == (2, 3)
    assert seen(await take(store, 1, after=2)) == [("ADDED", 3, "b")]


async def test_who_listens_hears_when_history_moves_up(open_: Open, clock: FakeClock) -> None:
    store = await open_(Retention(max_events=1))
    heard: list[int] = []
    store.listen(lambda events: None, compacted=heard.append)
    for n in range(3):
        await store.commit(Write(key("a"), pod("a", n=str(n))))
    await let_go(clock)
    assert heard[-1] == 3


async def test_a_key_lives_on_after_its_history_and_its_tombstone_are_gone(open_: Open, clock: FakeClock) -> None:
    store = await open_(Retention(max_events=1))
    for _ in range(3):
        await store.commit(Write(key("a"), pod("a"), expected=0))
        await store.commit(Write(key("a"), None))
    await store.commit(Write(key("b"), pod("b")))
    await let_go(clock)
    await compacted(store, 7)
    assert (await store.commit(Write(key("a"), pod("a"), expected=0)))[0].type == "ADDED"


# Restarts


class TestRestart:
    @pytest.fixture(params=["fake", "sqlite", pytest.param("postgresql", marks=pytest.mark.ring3)])
    def database(self, request: pytest.FixtureRequest) -> str:
        """SQLite in memory ends with its store."""
        return str(request.param)

    async def test_everything_is_there_again_byte_for_byte(self, open_: Open) -> None:
        store = await open_()
        await store.commit(*(Write(key(name), pod(name, über="ü")) for name in "abc"))
        await store.commit(Write(key("b"), None))
        before = await store.list(PODS)
        await store.close()
        after = await (await open_()).list(PODS)
        assert after.revision == before.revision == 5
        assert [(e.key, e.revision, e.encoded, e.obj) for e in after.entries] == [
            (e.key, e.revision, e.encoded, e.obj) for e in before.entries
        ]

    async def test_a_watch_goes_on_where_it_was(self, open_: Open) -> None:
        store = await open_()
        await store.commit(Write(key("a"), pod("a")))
        await store.commit(Write(key("a"), pod("a", v="2")), Write(key("b"), pod("b")))
        await store.commit(Write(key("a"), None))
        before = await take(store, 3, after=2)
        await store.close()
        after = await take(await open_(), 3, after=2)
        assert [(e.type, e.revision, e.obj, e.encoded, e.previous) for e in after] == [
            (e.type, e.revision, e.obj, e.encoded, e.previous) for e in before
        ]

    async def test_what_history_let_go_stays_gone_and_the_rest_stays(self, open_: Open, clock: FakeClock) -> None:
        store = await open_(Retention(max_events=2))
        await store.commit(Write(key("old"), pod("old")))
        for n in range(4):
            await store.commit(Write(key("a"), pod("a", n=str(n))))
        await store.commit(Write(key("a"), None))
        await let_go(clock)
        await compacted(store, 5)
        await let_go(clock)
        newest, oldest = store.revision, store.oldest
        await store.close()
        store = await open_()
        assert store.revision == newest
        assert store.oldest <= oldest
        assert [entry.key for entry in (await store.list(PODS)).entries] == [key("old")]
        with pytest.raises(Compacted):
            await take(store, 1, after=1)

    async def test_a_revision_is_not_given_again_when_the_last_object_and_its_history_are_gone(
        self, open_: Open, clock: FakeClock
    ) -> None:
        store = await open_(Retention(max_age_s=1))
        await store.commit(Write(key("a"), pod("a")))
        await store.commit(Write(key("a"), None))
        await clock.advance(2 * LOOK_EVERY_S)
        await asyncio.sleep(0.02)
        await store.close()
        store = await open_()
        assert store.revision == 3
        assert seen(await store.commit(Write(key("a"), pod("a"), expected=0))) == [("ADDED", 4, "a")]

    async def test_heartbeats_are_kept_over_a_clean_restart(self, open_: Open) -> None:
        store = await open_()
        for n in range(5):
            await store.commit(Write(key("lease"), pod("lease", n=str(n)), volatile=True))
        await store.commit(Write(key("a"), pod("a")))
        before = await store.get(key("lease"))
        await store.close()
        store = await open_()
        after = await store.get(key("lease"))
        assert before is not None
        assert after is not None
        assert (after.revision, after.obj, store.revision) == (6, before.obj, 7)
        assert seen(await store.commit(Write(key("lease"), None, expected=6))) == [("DELETED", 8, "lease")]
        await store.close()
        assert (await (await open_()).get(key("lease"))) is None


# Heartbeats


async def test_a_heartbeat_is_an_event_like_any_other(store: Store) -> None:
    await store.commit(Write(key("lease"), pod("lease"), volatile=True))
    await store.commit(Write(key("lease"), pod("lease", n="1"), expected=2, volatile=True))
    with pytest.raises(RevisionConflict):
        await store.commit(Write(key("lease"), pod("lease"), expected=2, volatile=True))
    await store.commit(Write(key("a"), pod("a")))
    await store.commit(Write(key("lease"), pod("lease", n="2"), expected=3, volatile=True))
    await store.commit(Write(key("lease"), pod("lease", n="3"), expected=5))
    await store.commit(Write(key("lease"), None, expected=6))
    assert seen(await take(store, 6, after=1)) == [
        ("ADDED", 2, "lease"),
        ("MODIFIED", 3, "lease"),
        ("ADDED", 4, "a"),
        ("MODIFIED", 5, "lease"),
        ("MODIFIED", 6, "lease"),
        ("DELETED", 7, "lease"),
    ]
