"""A world for controllers: the fake API, a clock that stands still, and the controllers under test at work."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kone.aio.clock import FakeClock, settle
from kone.apimachinery.kinds import EVENTS, GVR
from kone.apimachinery.objects import Object, deep_copy, dig, name_of, replace_in
from kone.controllers.controller import Controller, Manager, Settings
from tests.fakes import FakeClient


class World:
    """What a test acts on and looks at."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.client = FakeClient(self.clock)
        self.manager: Manager | None = None

    @asynccontextmanager
    async def running(self, *controllers: Controller, settings: Settings | None = None) -> AsyncIterator[World]:
        self.manager = Manager(lambda account: self.client, self.clock, settings or Settings(), controllers)
        await self.manager.start()
        await self.settle()
        try:
            yield self
        finally:
            await self.manager.stop()

    async def settle(self) -> None:
        """Let the controllers work until they have nothing to do at this moment of the clock."""
        await settle()
        while self.manager is not None and not self.manager.idle:
            await settle()

    async def advance(self, seconds: float) -> None:
        await self.clock.advance(seconds)
        await self.settle()

    async def put(self, resource: GVR, obj: Object) -> Object:
        made = self.client.put(resource, deep_copy(obj))
        await self.settle()
        return made

    async def edit(self, resource: GVR, obj: Object, *path: str, value: object) -> Object:
        """The user changes one field."""
        newest = self.client.look(resource, obj)
        made = await self.client.update(resource, replace_in(newest, path, value))
        await self.settle()
        return made

    async def events(self, reason: str = "") -> list[tuple[str, str, str]]:
        """(type, reason, message) of all events, in the order they were first written."""
        await self.advance(0.1)
        return [
            (event["type"], event["reason"], event["message"])
            for event in sorted(self.client.of(EVENTS), key=lambda event: int(event["metadata"]["resourceVersion"]))
            if reason in ("", event["reason"])
        ]


def conditions(obj: Object) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c.get("reason", "")) for c in dig(obj, "status", "conditions", default=[])}


def named(objects: list[Object]) -> dict[str, Object]:
    return {name_of(obj): obj for obj in objects}
