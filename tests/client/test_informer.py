"""Following a watch for ever: through ends, refusals, lost connections and revisions that are too old."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from kone.aio.clock import FakeClock, settle
from kone.apimachinery.errors import StatusError
from kone.apimachinery.objects import Object, name_of
from kone.client.client import Objects
from kone.client.informer import WatchedView
from tests.fakes import names


def thing(name: str, revision: int, **more: object) -> Object:
    return {"kind": "Thing", "metadata": {"name": name, "resourceVersion": str(revision), "uid": f"uid-{name}", **more}}


class FakeSource:
    """A source whose list and events a test gives; `ended` and `failing` say what the next watch does."""

    def __init__(self) -> None:
        self.objects: Objects = []
        self.revision = 10
        self.events: asyncio.Queue[tuple[str, Object] | Exception | None] = asyncio.Queue()
        self.lists = 0
        self.watched_from: list[str] = []
        self.refusal: Exception | None = None

    async def list(self) -> tuple[Objects, str]:
        self.lists += 1
        if self.refusal is not None:
            raise self.refusal
        return list(self.objects), str(self.revision)

    async def watch(self, after: str) -> AsyncIterator[tuple[str, Object]]:
        self.watched_from.append(after)
        while (event := await self.events.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield event

    async def send(self, *events: tuple[str, Object] | Exception | None) -> None:
        for event in events:
            self.events.put_nowait(event)
        await settle()


class Harness:
    def __init__(self) -> None:
        self.clock, self.source = FakeClock(), FakeSource()
        self.view = WatchedView("things", self.source, self.clock)
        self.told: list[tuple[str, str]] = []
        self.view.subscribe(lambda kind, obj, previous: self.told.append((kind, name_of(obj))))
        self.task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.task = asyncio.create_task(self.view.run())
        await settle()


@pytest.fixture
async def following() -> AsyncIterator[Harness]:
    harness = Harness()
    yield harness
    if harness.task is not None:
        harness.task.cancel()
        await asyncio.gather(harness.task, return_exceptions=True)


async def test_it_lists_and_then_follows(following: Harness) -> None:
    following.source.objects = [thing("a", 5)]
    await following.start()
    assert following.view.synced
    await following.source.send(("ADDED", thing("b", 11)), ("MODIFIED", thing("a", 12)), ("DELETED", thing("b", 13)))
    assert following.told == [("ADDED", "a"), ("ADDED", "b"), ("MODIFIED", "a"), ("DELETED", "b")]
    assert names(following.view.list()) == ["a"]


async def test_a_watch_that_ends_goes_on_where_it_was(following: Harness) -> None:
    await following.start()
    await following.source.send(("ADDED", thing("a", 11)), ("BOOKMARK", thing("", 20)))
    await following.clock.advance(60)
    await following.source.send(None)
    assert following.source.watched_from == ["10", "20"]
    assert following.source.lists == 1


async def test_watches_that_end_at_once_are_not_asked_for_in_a_hurry(following: Harness) -> None:
    await following.start()
    await following.source.send(None, None, None)
    assert len(following.source.watched_from) == 1
    await following.clock.advance(1.3)
    assert len(following.source.watched_from) == 2


async def test_a_lost_connection_is_taken_up_again(following: Harness) -> None:
    await following.start()
    await following.source.send(("ADDED", thing("a", 11)), ConnectionError("reset"))
    await following.clock.advance(1.3)
    assert following.source.watched_from == ["10", "11"]
    assert names(following.view.list()) == ["a"]


@pytest.mark.parametrize("how", ["as an event", "as an answer"])
async def test_a_revision_that_is_too_old_is_listed_anew_and_the_difference_told(following: Harness, how: str) -> None:
    following.source.objects = [thing("gone", 5), thing("changed", 6), thing("same", 7), thing("remade", 8)]
    await following.start()
    following.told.clear()
    remade = thing("remade", 32)
    remade["metadata"]["uid"] = "another"
    following.source.objects = [thing("changed", 30), thing("same", 7), thing("new", 31), remade]
    following.source.revision = 40
    gone = StatusError(410, "Expired", "too old resource version: 10 (20)")
    await following.source.send(("ERROR", gone.status) if how == "as an event" else gone)
    await following.clock.advance(1.3)
    assert sorted(following.told) == [
        ("ADDED", "new"),
        ("ADDED", "remade"),
        ("DELETED", "gone"),
        ("DELETED", "remade"),
        ("MODIFIED", "changed"),
    ]
    assert following.source.watched_from == ["10", "40"]


async def test_a_server_that_is_down_at_first_is_tried_again(following: Harness) -> None:
    following.source.refusal = ConnectionError("refused")
    await following.start()
    await following.clock.advance(3)
    assert not following.view.synced
    following.source.refusal = None
    await following.clock.advance(5)
    assert following.view.synced
    assert following.source.lists >= 3


async def test_a_writer_waits_until_it_sees_its_write(following: Harness) -> None:
    await following.start()
    seeing = asyncio.create_task(following.view.see(lambda: following.view.get("", "a") is not None))
    await settle()
    assert not seeing.done()
    await following.source.send(("ADDED", thing("a", 11)))
    await asyncio.wait_for(seeing, 30)
