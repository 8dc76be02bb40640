"""Plugins make themselves known by their sockets: what is registered, refused, tried again, and let go."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from kone.aio.clock import FakeClock, settle
from kone.apimachinery.kinds import CSINODES, NODES
from kone.apimachinery.objects import Object, annotations_of, labels_of
from kone.runtime.csi_drivers import (
    MIGRATED,
    NODE_IDS,
    PLUGIN_TYPE,
    CsiDrivers,
    DriverMissing,
    NodeAnswer,
    introduced,
    parse_versions,
    with_driver,
)
from kone.runtime.grpc_status import INTERNAL, RpcError
from kone.runtime.plugin_watcher import POLL_S, PluginRefused, PluginWatcher
from tests.csi_driver import CsiDriver
from tests.fakes import FakeClient


async def until(look: Callable[[], bool]) -> None:
    """Sockets are real: what comes over them takes its time."""
    async with asyncio.timeout(30):
        while not look():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


class World:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = FakeClock()
        self.client = FakeClient(self.clock)
        self.client.put(NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}})
        self.drivers = CsiDrivers(self.client, "n1", self.clock)
        self.watcher = PluginWatcher(path / "kubelet", self.clock, {PLUGIN_TYPE: self.drivers})
        self.driver = CsiDriver(path / "driver", topology={"topology.test/zone": "z1"}, max_volumes=7)

    @property
    def csi_node(self) -> Object:
        return self.client.of(CSINODES)[0]

    @property
    def node(self) -> Object:
        return self.client.of(NODES)[0]

    def registered(self) -> bool:
        return bool(self.driver.told)


@pytest.fixture
async def world(short_path: Path) -> AsyncIterator[World]:
    made = World(short_path)
    await made.drivers.start()
    await made.watcher.start()
    await made.driver.start()
    yield made
    await made.watcher.stop()
    await made.drivers.stop()
    await made.driver.stop()
    await made.driver.unregister()


async def test_the_node_has_a_csi_node_before_any_driver_comes(world: World) -> None:
    await world.driver.register(world.path / "elsewhere")
    await settle()
    owners = world.csi_node["metadata"]["ownerReferences"]
    assert [(owner["kind"], owner["name"], owner["uid"]) for owner in owners] == [
        ("Node", "n1", world.node["metadata"]["uid"])
    ]
    assert "kubernetes.io/aws-ebs" in annotations_of(world.csi_node)[MIGRATED].split(",")
    assert world.csi_node["spec"] == {"drivers": []}


async def test_a_driver_is_registered_and_the_api_knows_it(world: World) -> None:
    await world.driver.register(world.path / "kubelet")
    await until(world.registered)
    assert world.driver.told == [{"plugin_registered": True}]
    assert world.drivers.get(world.driver.name).name == world.driver.name
    assert world.csi_node["spec"]["drivers"] == [
        {
            "name": "test.csi.kone.dev",
            "nodeID": "node-1",
            "topologyKeys": ["topology.test/zone"],
            "allocatable": {"count": 7},
        }
    ]
    assert labels_of(world.node)["topology.test/zone"] == "z1"
    assert annotations_of(world.node)[NODE_IDS] == '{"test.csi.kone.dev":"node-1"}'


async def test_a_driver_whose_socket_is_gone_is_forgotten(world: World) -> None:
    await world.driver.register(world.path / "kubelet")
    await until(world.registered)
    await world.driver.unregister()
    await until(lambda: world.csi_node["spec"]["drivers"] == [] and NODE_IDS not in annotations_of(world.node))
    with pytest.raises(DriverMissing, match="not found in the list of registered CSI drivers"):
        world.drivers.get(world.driver.name)
    await world.driver.register(world.path / "kubelet")
    await until(lambda: len(world.driver.told) == 2)
    assert [driver["name"] for driver in world.csi_node["spec"]["drivers"]] == ["test.csi.kone.dev"]


async def test_what_fails_is_told_to_the_driver_and_tried_again(world: World) -> None:
    world.driver.refuse["NodeGetInfo"] = RpcError(INTERNAL, "not yet")
    await world.driver.register(world.path / "kubelet")
    await until(world.registered)
    why = "RegisterPlugin error -- plugin registration failed with err: rpc error: code = Internal desc = not yet"
    assert world.driver.told == [{"error": why}]
    world.driver.refuse.clear()
    assert len(world.driver.told) == 1, "its time has not come"
    async with asyncio.timeout(30):
        while len(world.driver.told) < 2:
            await world.clock.advance(0.5)
            await asyncio.sleep(0.005)
    assert world.driver.told[1] == {"plugin_registered": True}


async def test_a_plugin_of_a_type_that_nobody_handles(short_path: Path) -> None:
    watcher = PluginWatcher(short_path / "kubelet", FakeClock(), {})
    await watcher.start()
    driver = CsiDriver(short_path / "driver")
    await driver.register(short_path / "kubelet")
    await until(lambda: bool(driver.told))
    assert driver.told[0]["error"].startswith(
        "RegisterPlugin error -- no handler registered for plugin type: CSIPlugin at socket "
    )
    await watcher.stop()
    await driver.unregister()


async def test_a_host_that_has_no_inotify_left(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(changed: Callable[[], None]) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("kone.runtime.plugin_watcher.DirectoryWatch", refuse)
    clock = FakeClock()
    watcher = PluginWatcher(short_path / "kubelet", clock, {})
    await watcher.start()
    await settle()
    driver = CsiDriver(short_path / "driver")
    await driver.register(short_path / "kubelet")
    async with asyncio.timeout(30):
        while not driver.told:
            await clock.advance(POLL_S)
            await asyncio.sleep(0.005)
    await watcher.stop()
    await driver.unregister()


@pytest.mark.parametrize(
    ("versions", "found"),
    [(["1.0.0"], (1, 0, 0)), (["0.3.0", "1.2", "v1.1.5"], (1, 2, 0))],
)
def test_the_highest_version_of_csi_1_counts(versions: list[str], found: tuple[int, ...]) -> None:
    assert parse_versions("ValidatePlugin", "d", versions) == found


@pytest.mark.parametrize(
    ("versions", "text"),
    [
        ([], "returned an empty list for supported versions"),
        (["0.3.0", "2.0.0"], r'None of the versions specified \["0.3.0" "2.0.0"\] are supported'),
    ],
)
def test_other_versions_are_refused(versions: list[str], text: str) -> None:
    with pytest.raises(PluginRefused, match=text):
        parse_versions("ValidatePlugin", "d", versions)


def test_a_topology_that_contradicts_the_node_is_refused() -> None:
    node = {"metadata": {"name": "n1", "labels": {"zone": "a"}}}
    with pytest.raises(PluginRefused, match='driver reported "zone":"b" but existing label is "zone":"a"'):
        introduced(node, "d", NodeAnswer("id", 0, {"zone": "b"}))


def test_an_entry_that_says_nothing_new_is_left_alone() -> None:
    entry = {"name": "d", "nodeID": "id", "topologyKeys": ["b", "a"], "allocatable": {"count": 5}}
    csi_node = {"spec": {"drivers": [entry]}}
    assert with_driver(csi_node, "d", NodeAnswer("id", 5, {"a": "1", "b": "2"})) is csi_node
    assert with_driver(csi_node, "d", NodeAnswer("id", 0, {}))["spec"]["drivers"] == [
        {"name": "d", "nodeID": "id", "topologyKeys": []}
    ]
