"""The watch cache: current with the store at every answer, lists of now and then, watches that miss nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from kone.aio.clock import FakeClock, settle
from kone.apimachinery.objects import Object, dig
from kone.cache.watch_cache import Caches, Entry, WatchCache, Watcher
from kone.store.log_store import LOOK_EVERY_S
from kone.store.opening import open_store
from kone.store.store import Compacted, Event, FutureRevision, Retention, Store, Write, key_for


def pod(name: str, namespace: str = "default", node: str = "") -> Write:
    obj = {"metadata": {"name": name, "namespace": namespace}, "spec": {"nodeName": node}}
    return Write(key_for("", "pods", namespace, name), obj)


def gone(name: str, namespace: str = "default") -> Write:
    return Write(key_for("", "pods", namespace, name), None)


def node(name: str) -> Write:
    return Write(key_for("", "nodes", "", name), {"metadata": {"name": name}})


def names(entries: Iterable[Entry]) -> list[str]:
    return ["/".join(entry.key.split("/")[4:]) for entry in entries]


def seen(events: Sequence[Event]) -> list[tuple[str, int]]:
    return [(f"{event.type} {event.key.rpartition('/')[2]}", event.revision) for event in events]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def store(clock: FakeClock) -> AsyncIterator[Store]:
    opened = await open_store("memory://", retention=Retention(max_age_s=60), clock=clock)
    yield opened
    await opened.close()


@pytest.fixture
async def caches(store: Store) -> Caches:
    made = Caches(store)
    await made.start()
    return made


@pytest.fixture
def pods(caches: Caches) -> WatchCache:
    return caches.of("", "pods")


# get and list


async def test_what_was_answered_is_shown(store: Store, pods: WatchCache) -> None:
    [made] = await store.commit(pod("a"))
    entry = pods.get("default", "a")
    assert entry is not None
    assert (entry.obj, entry.encoded, entry.revision, pods.revision) == (made.obj, made.encoded, 2, 2)
    await store.commit(gone("a"))
    assert (pods.get("default", "a"), pods.list(), pods.revision) == (None, [], 3)


async def test_a_list_is_sorted_by_key_and_may_be_of_one_namespace(store: Store, pods: WatchCache) -> None:
    await store.commit(pod("b"), pod("a"), pod("x", "default-2"), pod("y", "a"), pod("z", "default2"))
    assert names(pods.list()) == ["a/y", "default-2/x", "default/a", "default/b", "default2/z"]
    assert names(pods.list("default")) == ["default/a", "default/b"]
    assert (len(pods), pods.count("default"), pods.count(), pods.list("none")) == (5, 2, 5, [])


async def test_resources_are_kept_apart(store: Store, caches: Caches) -> None:
    await store.commit(pod("a"), node("a"), Write(key_for("apps", "deployments", "default", "a"), {}))
    assert names(caches.of("", "nodes").list()) == ["a"]
    assert names(caches.of("apps", "deployments").list()) == ["default/a"]
    assert caches.of("", "nodes").get("", "a") is not None
    assert caches.of("", "secrets").list() == []


async def test_a_list_at_an_older_revision_shows_the_world_of_then(store: Store, pods: WatchCache) -> None:
    await store.commit(pod("a"), pod("b"))  # 2, 3
    await store.commit(pod("a"), gone("b"), pod("c", "other"))  # 4, 5, 6
    await store.commit(node("n"))  # 7
    worlds = [[(name, e.revision) for e in pods.list_at(r) for name in names([e])] for r in range(1, 8)]
    assert worlds == [
        [],
        [("default/a", 2)],
        [("default/a", 2), ("default/b", 3)],
        [("default/a", 4), ("default/b", 3)],
        [("default/a", 4)],
        [("default/a", 4), ("other/c", 6)],
        [("default/a", 4), ("other/c", 6)],
    ]
    assert names(pods.list_at(6, "other")) == ["other/c"]
    with pytest.raises(FutureRevision):
        pods.list_at(8)


# Indexes


def by_node(obj: Object) -> list[str]:
    name = dig(obj, "spec", "nodeName", default="")
    return [name] if name else []


async def test_an_index_follows_every_change(store: Store, pods: WatchCache) -> None:
    await store.commit(pod("b", node="n1"))
    pods.add_index("node", by_node)
    await store.commit(pod("a", node="n1"), pod("c"), pod("d", node="n2"))
    assert names(pods.by_index("node", "n1")) == ["default/a", "default/b"]
    await store.commit(pod("b", node="n2"), gone("d"))
    assert names(pods.by_index("node", "n1")) == ["default/a"]
    assert names(pods.by_index("node", "n2")) == ["default/b"]
    assert pods.by_index("node", "n3") == []


async def test_an_index_that_is_asked_for_twice_is_one(store: Store, pods: WatchCache) -> None:
    pods.add_index("node", by_node)
    pods.add_index("node", by_node)
    await store.commit(pod("a", node="n1"))
    assert names(pods.by_index("node", "n1")) == ["default/a"]


async def test_an_index_that_was_added_before_the_start_knows_what_was_there(store: Store) -> None:
    await store.commit(pod("a", node="n1"))
    caches = Caches(store)
    caches.of("", "pods").add_index("node", by_node)
    await caches.start()
    assert names(caches.of("", "pods").by_index("node", "n1")) == ["default/a"]


# Subscriptions


async def test_a_handler_hears_every_event_before_the_writer_is_answered(store: Store, pods: WatchCache) -> None:
    heard: list[Event] = []
    end = pods.subscribe(heard.append)
    await store.commit(pod("a"), node("n"), pod("a"))
    assert seen(heard) == [("ADDED a", 2), ("MODIFIED a", 4)]
    end()
    end()
    await store.commit(gone("a"))
    assert len(heard) == 2


async def test_a_handler_sees_every_cache_as_of_the_whole_transaction(store: Store, caches: Caches) -> None:
    found: list[Any] = []
    caches.of("", "nodes").subscribe(lambda event: found.append(caches.of("", "pods").get("default", "a")))
    await store.commit(node("n"), pod("a"))
    assert names(found) == ["default/a"]


async def test_a_handler_that_fails_harms_nobody(
    store: Store, pods: WatchCache, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[Event] = []

    def broken(event: Event) -> None:
        raise ValueError("oh")

    pods.subscribe(broken)
    pods.subscribe(heard.append)
    await store.commit(pod("a"))
    assert seen(heard) == [("ADDED a", 2)]
    assert "/registry/core/pods/default/a" in caplog.text


# Watches


async def test_a_watch_begins_after_its_revision_and_goes_on(store: Store, pods: WatchCache) -> None:
    await store.commit(pod("a"), pod("b"))
    watcher = pods.watch(after=2)
    assert seen(watcher.get_nowait()) == [("ADDED b", 3)]
    waiting = asyncio.create_task(watcher.get())
    await settle()
    await store.commit(node("n"))
    await store.commit(pod("a"), gone("b"))
    assert seen(await waiting) == [("MODIFIED a", 5), ("DELETED b", 6)]
    assert watcher.get_nowait() == []


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ({"namespace": "default"}, [("ADDED a", 2), ("ADDED b", 3)]),
        ({"namespace": "default", "name": "b"}, [("ADDED b", 3)]),
        ({"name": "a"}, [("ADDED a", 2), ("ADDED a", 4)]),
    ],
    ids=["a namespace", "an object", "a name anywhere"],
)
async def test_a_watch_may_be_of_less(
    store: Store, pods: WatchCache, which: dict[str, str], expected: list[tuple[str, int]]
) -> None:
    watcher = pods.watch(after=1, **which)
    await store.commit(pod("a"), pod("b"), pod("a", "default-2"), pod("ba", "default2"))
    assert seen(watcher.get_nowait()) == expected


async def test_a_watch_is_a_loop_over_batches_that_closing_ends(store: Store, pods: WatchCache) -> None:
    watcher = pods.watch(after=1, namespace="default")
    batches: list[list[tuple[str, int]]] = []

    async def read() -> None:
        async for events in watcher:
            batches.append(seen(events))

    reading = asyncio.create_task(read())
    await store.commit(pod("a"), pod("b"))
    await store.commit(pod("x", "other"))
    await store.commit(gone("a"))
    await settle()
    watcher.close()
    await asyncio.wait_for(reading, 30)
    assert batches == [[("ADDED a", 2), ("ADDED b", 3)], [("DELETED a", 5)]]


async def test_a_hundred_watchers_see_the_same_entries(store: Store, pods: WatchCache) -> None:
    watchers = [pods.watch(after=1) for _ in range(100)]
    waiting = [asyncio.create_task(watcher.get()) for watcher in watchers]
    await settle()
    await store.commit(pod("a"))
    entry = pods.get("default", "a")
    for events in await asyncio.gather(*waiting):
        assert [event.entry is entry for event in events] == [True]


async def test_a_slow_watcher_is_dropped_and_stops_nobody(store: Store, pods: WatchCache) -> None:
    slow, quick = pods.watch(after=1, buffer=2), pods.watch(after=1)
    await store.commit(pod("a"), pod("b"), pod("c"))
    assert (await slow.get(), slow.dropped, slow.ended) == ([], True, True)
    assert len(quick.get_nowait()) == 3


async def test_a_bookmark_says_what_has_been_read(store: Store, pods: WatchCache) -> None:
    watcher: Watcher = pods.watch(after=1)
    await store.commit(node("n"))
    assert watcher.revision == 2
    await store.commit(pod("a"))
    assert (watcher.revision, watcher.lag) == (2, 1)
    await watcher.get()
    assert watcher.revision == 3


async def test_waiting_for_a_bookmark_has_an_end(pods: WatchCache) -> None:
    watcher = pods.watch(after=1)
    assert (await watcher.get(timeout_s=0.001), watcher.ended) == ([], False)


async def test_a_watch_from_the_future_is_refused(pods: WatchCache) -> None:
    with pytest.raises(FutureRevision):
        pods.watch(after=2)


async def test_history_goes_with_the_stores(store: Store, pods: WatchCache, clock: FakeClock) -> None:
    await store.commit(pod("a"))  # 2
    await store.commit(pod("a"))  # 3
    waiting = pods.watch(after=2)
    await clock.advance(61)
    await store.commit(pod("a"))  # 4
    await clock.advance(LOOK_EVERY_S)
    with pytest.raises(Compacted) as refusal:
        pods.watch(after=2)
    assert refusal.value.oldest == 3
    with pytest.raises(Compacted):
        pods.list_at(2)
    assert (waiting.get_nowait(), waiting.dropped) == ([], True)
    assert seen(pods.watch(after=3).get_nowait()) == [("MODIFIED a", 4)]


async def test_a_quiet_resource_can_be_watched_from_long_ago(store: Store, caches: Caches, clock: FakeClock) -> None:
    await store.commit(node("n"))  # 2
    await store.commit(pod("a"))  # 3
    await clock.advance(90)
    await store.commit(pod("a"))
    await clock.advance(90)
    assert store.oldest == 4
    assert caches.of("", "nodes").watch(after=2).get_nowait() == []


# The start


async def test_a_restart_goes_on_with_the_watches_of_before(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/kone.db"
    store = await open_store(url)
    await store.commit(pod("a"), node("n"), pod("b"))
    await store.commit(gone("a"))
    await store.close()
    store = await open_store(url)
    caches = Caches(store)
    await caches.start()
    pods = caches.of("", "pods")
    assert names(pods.list()) == ["default/b"]
    assert seen(pods.watch(after=2).get_nowait()) == [("ADDED b", 4), ("DELETED a", 5)]
    assert names(pods.list_at(4)) == ["default/a", "default/b"]
    await store.close()


async def test_a_resource_that_is_new_remembers_what_was_forgotten_before(store: Store, clock: FakeClock) -> None:
    await store.commit(pod("a"))
    await store.commit(gone("a"))
    await clock.advance(90)
    caches = Caches(store)
    await caches.start()
    with pytest.raises(Compacted):
        caches.of("", "pods").watch(after=1)
    await store.commit(node("n"))
    with pytest.raises(Compacted):
        caches.of("", "nodes").watch(after=1)


async def test_writes_during_the_start_are_neither_lost_nor_doubled(store: Store) -> None:
    await store.commit(pod("a"))
    caches = Caches(store)
    _, _ = await asyncio.gather(caches.start(), store.commit(pod("b")))
    await store.commit(pod("c"))
    pods = caches.of("", "pods")
    assert names(pods.list()) == ["default/a", "default/b", "default/c"]
    assert [event.revision for event in pods.watch(after=1).get_nowait()] == [2, 3, 4]
