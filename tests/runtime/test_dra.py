"""Claims of dynamic resources: prepared by their drivers before a pod, let go after the last, whatever comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from kone.aio.clock import FakeClock, settle
from kone.apimachinery.kinds import RESOURCECLAIMS, RESOURCESLICES
from kone.apimachinery.objects import Object, name_of
from kone.runtime import cdi
from kone.runtime.dra import PLUGIN_TYPE, WIPE_S, DynamicResources, NotPrepared
from kone.runtime.plugin_watcher import PluginRefused, PluginWatcher
from kone.runtime.runtime import Device
from tests.device_drivers import DraDriver
from tests.fakes import FakeClient


async def until(look: Callable[[], bool]) -> None:
    """Sockets are real: what comes over them takes its time."""
    async with asyncio.timeout(30):
        while not look():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


class World:
    def __init__(self, path: Path, version: str = "v1") -> None:
        self.path, self.clock = path, FakeClock()
        self.client = FakeClient(self.clock)
        self.driver = DraDriver(path / "d", path / "cdi", version=version)
        self.make()

    def make(self) -> None:
        """A new kubelet."""
        self.dra = DynamicResources(self.client, self.path, "n1", self.clock)
        self.watcher = PluginWatcher(self.path, self.clock, {PLUGIN_TYPE: self.dra})

    async def start(self) -> None:
        self.driver.told.clear()
        await self.dra.start()
        await self.watcher.start()
        await self.driver.start()
        await self.driver.register(self.path)
        await until(lambda: bool(self.driver.told))

    async def stop(self) -> None:
        await self.watcher.stop()
        await self.dra.stop()
        await self.driver.unregister(self.path)
        await self.driver.stop()

    def claim(self, name: str, *pods: str, driver: str = "dra.kone.test") -> Object:
        results = [{"request": "r", "driver": driver, "pool": "p", "device": "d"}]
        status = {
            "allocation": {"devices": {"results": results}},
            "reservedFor": [{"resource": "pods", "name": uid, "uid": uid} for uid in pods],
        }
        return self.client.put(
            RESOURCECLAIMS,
            {
                "apiVersion": "resource.k8s.io/v1",
                "kind": "ResourceClaim",
                "metadata": {"name": name, "namespace": "default"},
                "spec": {},
                "status": status,
            },
        )

    @property
    def asked(self) -> list[str]:
        return [name for name, _ in self.driver.calls]


def pod(uid: str, claim: str = "claim", **use: str) -> Object:
    container = {"name": "c", "resources": {"claims": [{"name": "mine", **use}]}}
    claims = [{"name": "mine", "resourceClaimName": claim}]
    meta = {"name": uid, "namespace": "default", "uid": uid}
    return {"metadata": meta, "spec": {"containers": [container], "resourceClaims": claims}}


def env(world: World, of: Object) -> dict[str, str]:
    return dict(world.dra.allotment(of, of["spec"]["containers"][0]).env)


@pytest.fixture
async def world(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    world = World(short_path)
    original = cdi.allotment
    monkeypatch.setattr(cdi, "allotment", lambda names: original(names, [short_path / "cdi"]))
    yield world
    await world.stop()


async def test_a_claim_is_prepared_once_for_all_its_pods_and_let_go_by_the_last(world: World) -> None:
    await world.start()
    made = world.claim("claim", "a", "b")
    for each in (pod("a"), pod("b"), pod("a")):
        await world.dra.prepare(each)
    told = {"namespace": "default", "name": "claim", "uid": made["metadata"]["uid"]}
    assert world.driver.calls == [("prepare", {"claims": [told]})]
    found = world.dra.allotment(pod("a"), pod("a")["spec"]["containers"][0])
    assert (found.devices, found.env, found.groups) == (
        (Device("/dev/null", "/dev/claimed", "rw"),),
        (("CLAIM", "claim"),),
        (4242,),
    )
    await world.dra.release("a")
    assert world.asked == ["prepare"]
    await world.dra.release("b")
    assert world.asked == ["prepare", "unprepare"]
    assert world.dra.pods() == set()


async def test_a_driver_of_the_older_version_is_spoken_to_in_it(short_path: Path) -> None:
    world = World(short_path, "v1beta1")
    await world.start()
    world.claim("claim", "a")
    await world.dra.prepare(pod("a"))
    assert world.asked == ["prepare"]
    await world.stop()


async def test_a_container_has_the_devices_of_the_request_that_it_names(world: World) -> None:
    await world.start()
    world.claim("claim", "a")
    await world.dra.prepare(pod("a"))
    for claim in world.dra._claims.values():
        claim.devices = [type(device)(["r", "s/t"], device.cdi) for device in claim.devices]
    assert env(world, pod("a", request="r")) == env(world, pod("a", request="s")) == {"CLAIM": "claim"}
    assert env(world, pod("a", request="other")) == {}
    assert env(world, pod("stranger")) == {}


@pytest.mark.parametrize(
    ("arrange", "why"),
    [
        (lambda world: None, 'fetch ResourceClaim claim: resourceclaims.resource.k8s.io "claim" not found'),
        (lambda world: world.claim("claim", "z"), "pod a (a) is not allowed to use ResourceClaim claim"),
        (
            lambda world: world.claim("claim", "a", driver="other"),
            "ResourceClaim claim: DRA driver other is not registered",
        ),
        (
            lambda world: (world.claim("claim", "a"), world.driver.refuse.update(prepare="no luck")),
            "NodePrepareResources failed for ResourceClaim claim: no luck",
        ),
    ],
    ids=["no claim", "reserved for others", "no driver", "the driver fails"],
)
async def test_a_pod_waits_for_what_is_missing(world: World, arrange: Callable[[World], Any], why: str) -> None:
    await world.start()
    arrange(world)
    with pytest.raises(NotPrepared) as error:
        await world.dra.prepare(pod("a"))
    assert str(error.value).startswith("prepare dynamic resources: ")
    assert why in str(error.value)


async def test_a_claim_that_a_template_made_is_known_by_the_pods_status(world: World) -> None:
    await world.start()
    world.claim("made", "a")
    waiting = pod("a")
    waiting["spec"]["resourceClaims"] = [{"name": "mine", "resourceClaimTemplateName": "t"}]
    with pytest.raises(NotPrepared):
        await world.dra.prepare(waiting)
    named = {**waiting, "status": {"resourceClaimStatuses": [{"name": "mine", "resourceClaimName": "made"}]}}
    await world.dra.prepare(named)
    assert env(world, named) == {"CLAIM": "made"}
    needless = {**waiting, "status": {"resourceClaimStatuses": [{"name": "mine"}]}}
    await world.dra.prepare(needless)


async def test_what_was_prepared_is_let_go_by_a_kubelet_that_was_started_anew(world: World) -> None:
    await world.start()
    world.claim("claim", "a")
    await world.dra.prepare(pod("a"))
    await world.stop()
    world.make()
    await world.dra.start()
    assert world.dra.pods() == {"a"}
    with pytest.raises(NotPrepared, match=r"DRA driver dra\.kone\.test is not registered"):
        await world.dra.release("a")
    assert world.dra.pods() == {"a"}
    await world.start()
    await world.dra.release("a")
    assert world.asked == ["prepare", "unprepare"]


async def test_the_slices_of_a_driver_that_is_gone_are_removed(world: World) -> None:
    def put(name: str, driver: str, node: str) -> None:
        spec = {"driver": driver, "nodeName": node, "pool": {"name": "p"}}
        kind = {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice"}
        world.client.put(RESOURCESLICES, {**kind, "metadata": {"name": name}, "spec": spec})

    def names() -> set[str]:
        return {name_of(found) for found in world.client.of(RESOURCESLICES)}

    put("mine", "dra.kone.test", "n1")
    put("left", "gone.kone.test", "n1")
    put("other-node", "gone.kone.test", "n2")
    await world.start()
    await world.clock.advance(WIPE_S)
    await settle()
    assert names() == {"mine", "other-node"}
    await world.driver.unregister(world.path)
    await until(lambda: "dra.kone.test" not in world.dra._drivers)
    await world.clock.advance(WIPE_S - 1)
    assert names() == {"mine", "other-node"}
    await world.clock.advance(1)
    await settle()
    assert names() == {"other-node"}


def test_a_driver_that_speaks_neither_version_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path)
    with pytest.raises(PluginRefused):
        world.dra.validate("d", "", ["v1alpha4.DRAPlugin"])
