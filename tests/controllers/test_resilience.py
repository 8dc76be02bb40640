"""No controller falls for another's fault, nor for its own: one that raises backs off alone and says so, one whose
tasks are killed goes on."""

from __future__ import annotations

import asyncio
import dataclasses
import logging

import pytest

from kone.aio.clock import settle
from kone.apimachinery.kinds import CONFIGMAPS
from kone.apimachinery.objects import Key, Object
from kone.controllers.catalogue import all_controllers
from kone.controllers.controller import Context, Controller, Reconciler, Result, Settings
from kone.controllers.garbage_collector import GarbageCollector
from tests.controllers.world import World

SETTINGS = Settings(collectable_resources=lambda: (CONFIGMAPS,))
OBJECT: Object = {
    "apiVersion": "example.com/v1",
    "kind": "Thing",
    "metadata": {"name": "x", "namespace": "ns", "uid": "uid-x", "resourceVersion": "1"},
}
KEY = Key("ns", "x")


class Spied:
    """A controller whose reconciler only notes that it was asked for the key, and fails as often as it is told."""

    def __init__(self, controller: Controller) -> None:
        self.controller = dataclasses.replace(controller, make=self._make)
        self._real = controller.make
        self.asked = 0
        self.failures = 0
        self.hangs = False

    def _make(self, ctx: Context) -> Reconciler:
        self.ctx, self.reconciler = ctx, self._real(ctx)
        self.key = Key("", "uid-x") if isinstance(self.reconciler, GarbageCollector) else KEY
        self.reconciler.reconcile = self._reconcile  # type: ignore[method-assign]
        return self.reconciler

    async def _reconcile(self, key: Key) -> Result | None:
        if key != self.key:
            return None
        self.asked += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.asked <= self.failures:
            raise RuntimeError("boom")
        return None

    def appear(self, world: World) -> None:
        """The object that the key names is there."""
        if isinstance(self.reconciler, GarbageCollector):
            world.client.put(CONFIGMAPS, OBJECT)
        else:
            self.reconciler.primary.apply("ADDED", OBJECT)  # type: ignore[attr-defined]
        self.ctx.queue.add(self.key)


every_controller = pytest.mark.parametrize("controller", all_controllers(), ids=lambda controller: controller.name)


@every_controller
async def test_one_that_raises_backs_off_alone_and_says_so(
    controller: Controller, caplog: pytest.LogCaptureFixture
) -> None:
    world, spied = World(), Spied(controller)
    other = Spied(next(each for each in all_controllers() if each.name != controller.name))
    spied.failures = 2
    async with world.running(spied.controller, other.controller, settings=SETTINGS):
        with caplog.at_level(logging.CRITICAL):
            spied.appear(world)
            await world.settle()
            assert spied.asked == 1
            before = other.asked
            other.ctx.queue.add(other.key)
            await world.settle()
            assert other.asked == before + 1
            await world.advance(4 * controller.backoff_s)
        assert spied.asked == 3
        assert not other.ctx.queue.failures(other.key)
        events = await world.events("ReconcileFailed")
    message = f"Controller {controller.name} failed and will try again: RuntimeError: boom"
    assert events == [("Warning", "ReconcileFailed", message)]


@every_controller
async def test_one_whose_tasks_are_killed_goes_on(controller: Controller, caplog: pytest.LogCaptureFixture) -> None:
    world, spied = World(), Spied(controller)
    async with world.running(spied.controller, settings=SETTINGS):
        spied.hangs = True
        spied.appear(world)
        await settle()
        assert spied.asked == 1
        names = _loops_of(controller)
        assert names
        spied.hangs = False
        with caplog.at_level(logging.CRITICAL):
            for task in asyncio.all_tasks():
                if task.get_name() in names:
                    task.cancel()
            await world.settle()
        assert _loops_of(controller) == names
        assert spied.asked == 2  # what was being worked on is worked on again
        spied.ctx.queue.add(spied.key)
        await world.settle()
        assert spied.asked == 3
        spied.ctx.queue.add_after(spied.key, 60)
        with caplog.at_level(logging.CRITICAL):
            for task in asyncio.all_tasks():
                if task.get_name() == f"queue {controller.name}":
                    task.cancel()
            await settle()
        await world.advance(60)
        assert spied.asked == 4


def _loops_of(controller: Controller) -> list[str]:
    """The names of its tasks, but for those that watch over them."""
    names = (task.get_name() for task in asyncio.all_tasks())
    return sorted(name for name in names if name.startswith(f"{controller.name} "))
