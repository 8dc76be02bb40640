"""Device plugins over real sockets: what they have, who is given it, and what becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from kone.aio.clock import FakeClock
from kone.apimachinery.objects import Object
from kone.runtime.cdi import Allotment
from kone.runtime.device_plugins import STOPPED_S, DevicePlugins, NotFreeYet, Unavailable
from kone.runtime.grpc_status import RpcError
from kone.runtime.runtime import Device, Mount
from tests.device_drivers import DevicePlugin

WIDGET = "kone.test/widget"


async def until(look: Callable[[], bool]) -> None:
    """Sockets are real: what comes over them takes its time."""
    async with asyncio.timeout(30):
        while not look():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


class World:
    def __init__(self, path: Path) -> None:
        self.path, self.clock = path, FakeClock()
        self.devices = DevicePlugins(path, self.clock)
        self.plugin = DevicePlugin(path)

    async def start(self, *live: str) -> None:
        await self.devices.start(live)
        await self.plugin.start()
        await until(lambda: self.amounts == (len(self.plugin.devices), 2))

    async def stop(self) -> None:
        await self.devices.stop()
        await self.plugin.stop()

    @property
    def amounts(self) -> tuple[int | None, int | None]:
        """(capacity, allocatable) of widgets."""
        capacity, allocatable = self.devices.capacity()
        return capacity.get(WIDGET), allocatable.get(WIDGET)


@pytest.fixture
async def world(short_path: Path) -> AsyncIterator[World]:
    world = World(short_path)
    yield world
    await world.stop()


def pod(uid: str, count: int = 1, **more: Any) -> Object:
    container = {"name": "c", "resources": {"limits": {WIDGET: str(count)}}}
    return {"metadata": {"name": uid, "namespace": "n", "uid": uid}, "spec": {"containers": [container], **more}}


def ids(world: World, uid: str, container: str = "c") -> list[str]:
    return list(world.devices.given(uid).get(container, {}).get(WIDGET, ()))


async def test_what_a_plugin_lists_is_capacity_and_what_is_healthy_allocatable(world: World) -> None:
    await world.start()
    world.plugin.show(w0="Healthy", w1="Unhealthy", w2="Healthy")
    await until(lambda: world.amounts == (3, 2))


async def test_a_pod_keeps_its_devices_until_it_has_ended(world: World) -> None:
    await world.start()
    await world.devices.choose(pod("a"))
    await world.devices.choose(pod("a"))
    await world.devices.choose(pod("b"))
    assert (ids(world, "a"), ids(world, "b")) == (["w0"], ["w1"])
    with pytest.raises(Unavailable) as error:
        await world.devices.choose(pod("c"))
    assert str(error.value) == (
        "requested number of devices unavailable for kone.test/widget. Requested: 1, Available: 0"
    )
    world.devices.release("a")
    await world.devices.choose(pod("c"))
    assert ids(world, "c") == ["w0"]


async def test_what_a_pod_that_is_being_ended_holds_is_waited_for(short_path: Path) -> None:
    world = World(short_path)
    ending: set[str] = set()
    world.devices = DevicePlugins(short_path, world.clock, is_ending=ending.__contains__)
    await world.start()
    await world.devices.choose(pod("a", 2))
    ending.add("a")
    with pytest.raises(NotFreeYet):
        await world.devices.choose(pod("b"))
    with pytest.raises(Unavailable):
        await world.devices.choose(pod("b", 3))
    world.devices.release("a")
    await world.devices.choose(pod("b"))
    assert ids(world, "b") == ["w0"]
    await world.stop()


async def test_who_has_what_outlives_the_kubelet_for_pods_that_are_still_there(world: World) -> None:
    await world.start()
    await world.devices.choose(pod("a"))
    await world.devices.choose(pod("b"))
    again = DevicePlugins(world.path, world.clock)
    await world.devices.stop()
    await again.start({"b"})
    assert (again.given("a"), again.given("b")) == ({}, {"c": {WIDGET: ["w1"]}})
    await again.stop()


async def test_the_devices_of_an_init_container_are_given_on_and_a_sidecars_are_not(world: World) -> None:
    await world.start()
    limits = {"resources": {"limits": {WIDGET: "1"}}}
    inits = [{"name": "i", **limits}, {"name": "s", "restartPolicy": "Always", **limits}]
    await world.devices.choose(pod("a", initContainers=[inits[0]]))
    assert ids(world, "a", "i") == ids(world, "a", "c") == ["w0"]
    world.devices.release("a")
    await world.devices.choose(pod("b", initContainers=inits))
    assert (ids(world, "b", "i"), ids(world, "b", "s"), ids(world, "b", "c")) == (["w0"], ["w0"], ["w1"])


async def test_the_plugin_says_what_they_need_in_the_container(world: World) -> None:
    world.plugin.options = {"pre_start_required": True}
    await world.start()
    await world.devices.choose(pod("a", 2))
    assert await world.devices.allotment(pod("a"), "c") == Allotment(
        (Device("/dev/null", "/dev/widget-w0", "rw"), Device("/dev/null", "/dev/widget-w1", "rw")),
        (Mount("/widgets", str(world.path), read_only=True),),
        (("WIDGETS", "w0,w1"),),
    )
    assert world.plugin.calls[-1] == ("pre_start", {"devices_ids": ["w0", "w1"]})
    assert await world.devices.allotment(pod("other"), "c") == Allotment()
    world.plugin.refuse["allocate"] = "broken"
    with pytest.raises(Unavailable, match="broken"):
        await world.devices.allotment(pod("a"), "c")


async def test_a_plugin_that_has_a_preference_is_asked(world: World) -> None:
    world.plugin.options = {"get_preferred_allocation_available": True}
    await world.start()
    await world.devices.choose(pod("a"))
    assert ids(world, "a") == ["w1"]
    assert world.plugin.calls[-1][1]["container_requests"][0]["available_deviceIDs"] == ["w0", "w1"]


async def test_the_devices_of_a_plugin_that_is_gone_are_unhealthy_and_after_five_minutes_none(world: World) -> None:
    await world.start()
    await world.plugin.stop()
    await until(lambda: world.amounts == (2, 0))
    with pytest.raises(Unavailable, match="no healthy devices present; cannot allocate unhealthy devices"):
        await world.devices.choose(pod("a"))
    await world.clock.advance(STOPPED_S)
    assert world.amounts == (0, 0)
    await world.plugin.start()
    await until(lambda: world.amounts == (2, 2))


@pytest.mark.parametrize(
    ("resource", "version", "why"),
    [
        (WIDGET, "v1alpha1", "is not supported by kubelet"),
        ("kubernetes.io/widget", "v1beta1", "the ResourceName 'kubernetes.io/widget' is invalid"),
        ("widget", "v1beta1", "is invalid"),
    ],
)
async def test_a_registration_that_cannot_be_is_refused(world: World, resource: str, version: str, why: str) -> None:
    await world.devices.start(())
    world.plugin.resource = resource
    with pytest.raises(RpcError, match=why):
        await world.plugin.register(version)
    assert world.devices.capacity() == ({}, {})
