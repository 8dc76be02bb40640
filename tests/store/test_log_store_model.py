"""Random lives of a store against a model: writes, crashes, restarts, failing disks and compaction in any order.

What must hold whatever happens: every acknowledged durable state is there or was replaced by a later one, revisions
only grow, and a world at an older revision is listed as it was then, or refused as compacted.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from kone.aio.clock import FakeClock
from kone.store.log_store import LOOK_EVERY_S, LogStore
from kone.store.store import Compacted, DatastoreFailed, KeyExists, KeyMissing, Retention, Write
from tests.store.fake_log import FakeLog
from tests.store.test_log_store import crash

PREFIX = "/registry/core/things/"
keys = st.sampled_from("abc")
steps = st.one_of(
    st.tuples(st.just("put"), keys),
    st.tuples(st.just("make"), keys),
    st.tuples(st.just("beat"), keys),
    st.tuples(st.just("delete"), keys),
    st.tuples(st.just("both"), keys),
    st.tuples(st.sampled_from(["fail before", "fail after"]), st.just("")),
    st.tuples(st.sampled_from(["restart", "crash", "compact", "wait"]), st.just("")),
)
World = dict[str, tuple[int, int]]  # name: (revision, n)


@dataclass
class Life:
    """One store from its first opening on, with what its callers were told."""

    log: FakeLog = field(default_factory=FakeLog)
    clock: FakeClock = field(default_factory=FakeClock)
    newest: int = 1
    n: int = 0

    async def open(self) -> None:
        self.store = await LogStore.load(self.log, Retention(max_events=6, max_age_s=60), self.clock, protect=False)
        assert self.store.revision >= self.newest
        self.newest = self.store.revision

    async def write(self, *writes: Write) -> None:
        try:
            events = await self.store.commit(*writes)
        except (KeyExists, KeyMissing, DatastoreFailed):
            return
        for event in events:
            assert event.revision > self.newest, "revisions only grow"
            self.newest = event.revision

    async def step(self, what: str, name: str) -> None:
        self.n += 1
        key, obj = PREFIX + name, {"n": self.n}
        match what:
            case "put":
                await self.write(Write(key, obj))
            case "make":
                await self.write(Write(key, obj, expected=0))
            case "beat":
                await self.write(Write(key, obj, volatile=True))
            case "delete":
                await self.write(Write(key, None))
            case "both":
                await self.write(Write(key, obj), Write(PREFIX + "a", None), Write(key, obj, volatile=True))
            case "fail before" | "fail after":
                self.log.fail_next = what.removeprefix("fail ")
            case "compact":
                for _ in range(3):
                    await self.clock.advance(LOOK_EVERY_S)
                    await asyncio.sleep(0.0)
            case "wait":
                await asyncio.sleep(0.025)  # the writer's idle step
            case "restart":
                before = await self.world()
                await self.store.close()
                await self.open()
                if not self.log.fail_next:
                    assert await self.world() == before
                await self.check_history()
            case "crash":
                durable = {name: found for name, found in (await self.world()).items() if not self.is_volatile(name)}
                await crash(self.store)
                await self.open()
                world = await self.world()
                assert {name: world.get(name) for name in durable} == durable
                await self.check_history()

    def is_volatile(self, name: str) -> bool:
        return PREFIX + name in self.store._volatile or self.store._in_doubt

    async def world(self, revision: int = 0) -> World:
        page = await self.store.list(PREFIX, revision=revision)
        return {entry.key.removeprefix(PREFIX): (entry.revision, entry.obj["n"]) for entry in page.entries}

    async def check_history(self) -> None:
        """The events lead from the oldest world to the newest, and every world between is listed as they say."""
        world = await self.world(self.store.oldest)
        for event in self.store.history():
            name = event.key.removeprefix(PREFIX)
            assert (event.before is None) == (name not in world)
            if event.type == "DELETED":
                del world[name]
            else:
                world[name] = (event.revision, event.obj["n"])
            assert await self.world(event.revision) == world
        assert await self.world() == world
        if self.store.oldest > 1:
            try:
                await self.world(self.store.oldest - 1)
            except Compacted:
                pass
            else:
                raise AssertionError("history is older than it says")


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(steps, max_size=25))
def test_a_store_stays_true_whatever_happens_to_it(plan: list[tuple[str, str]]) -> None:
    async def live() -> None:
        life = Life()
        await life.open()
        for what, name in plan:
            await life.step(what, name)
            await life.check_history()
        life.log.fail_next = ""
        await life.store.close()

    asyncio.run(live())
