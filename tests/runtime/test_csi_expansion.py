"""A volume that has grown: what the node does about it, and what the claim says then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kone.apimachinery.kinds import EVENTS, PERSISTENTVOLUMECLAIMS, PERSISTENTVOLUMES
from kone.apimachinery.objects import Object, dig
from kone.client.events import EventRecorder
from kone.runtime import csi_messages
from kone.runtime.csi_expansion import CsiExpansion, finished, wanted_size
from kone.runtime.grpc_status import FAILED_PRECONDITION, INTERNAL, INVALID_ARGUMENT, RpcError
from tests.runtime.test_csi_volumes import World, until

GIB = 1 << 30


class Growing(World):
    async def run(self) -> None:
        self.recorder = EventRecorder(self.client, "kubelet", host="n1", clock=self.clock, linger_s=0.0)
        self.expansion = CsiExpansion(self.client, self.recorder, self.csi, "n1", self.clock)
        await self.expansion.start()

    @property
    def claim(self) -> Object:
        return self.client.of(PERSISTENTVOLUMECLAIMS)[0]

    @property
    def status(self) -> Object:
        return {key: value for key, value in self.claim["status"].items() if key != "phase"}

    def grow(self, status: str = "NodeResizePending", **more: Any) -> None:
        """The external-resizer."""
        volume = self.client.of(PERSISTENTVOLUMES)[0]
        self.client.overwrite(PERSISTENTVOLUMES, {**volume, "spec": {**volume["spec"], "capacity": {"storage": "2Gi"}}})
        told = {
            "capacity": {"storage": "1Gi"},
            "allocatedResources": {"storage": "2Gi"},
            "allocatedResourceStatuses": {"storage": status},
            "conditions": [{"type": "FileSystemResizePending", "status": "True"}, {"type": "Other", "status": "True"}],
            **more,
        }
        claim = self.claim
        self.client.overwrite(PERSISTENTVOLUMECLAIMS, {**claim, "status": {**claim["status"], **told}})

    def events(self) -> list[tuple[str, str, str]]:
        return [(e["involvedObject"]["kind"], e["reason"], e["message"]) for e in self.client.of(EVENTS)]

    def expansions(self) -> int:
        return len(self.driver.called("NodeExpandVolume"))


@pytest.fixture
async def world(short_path: Path) -> AsyncIterator[Growing]:
    from kone.runtime import mounts

    made = Growing(short_path)
    made.driver.abilities = (csi_messages.STAGE_UNSTAGE_VOLUME, csi_messages.EXPAND_VOLUME)
    await made.driver.start()
    made.tell()
    made.volume(capacity={"storage": "1Gi"})
    await made.start()
    await made.run()
    yield made
    await made.expansion.stop()
    await made.recorder.stop()
    await made.volumes.stop()
    await made.driver.stop()
    for point in mounts.mounts_below(str(made.root)):
        mounts.unmount(point)


async def test_a_volume_that_grows_under_its_pod(world: Growing) -> None:
    path = await world.mount(world.pod())
    world.grow()
    await until(lambda: dig(world.status, "capacity", "storage") == "2Gi")
    (asked,) = world.driver.called("NodeExpandVolume")
    assert (asked["volume_path"], asked["capacity_range"]) == (str(path), {"required_bytes": 2 * GIB})
    assert world.status == {
        "capacity": {"storage": "2Gi"},
        "allocatedResources": {"storage": "2Gi"},
        "conditions": [{"type": "Other", "status": "True"}],
    }
    await until(lambda: len(world.events()) == 2)
    text = 'MountVolume.NodeExpandVolume succeeded for volume "pv" n1'
    assert sorted(world.events()) == [
        ("PersistentVolumeClaim", "FileSystemResizeSuccessful", text),
        ("Pod", "FileSystemResizeSuccessful", text),
    ]


async def test_a_volume_that_has_grown_before_it_is_mounted(world: Growing) -> None:
    world.grow()
    await world.mount(world.pod())
    await until(lambda: dig(world.status, "capacity", "storage") == "2Gi")
    assert world.expansions() == 1


async def test_a_driver_that_has_nothing_to_do_on_nodes(world: Growing) -> None:
    world.driver.abilities = (csi_messages.STAGE_UNSTAGE_VOLUME,)
    await world.mount(world.pod())
    world.grow()
    await until(lambda: dig(world.status, "capacity", "storage") == "2Gi")
    assert world.expansions() == 0


async def test_what_fails_is_tried_again(world: Growing) -> None:
    await world.mount(world.pod())
    world.driver.refuse["NodeExpandVolume"] = RpcError(INTERNAL, "busy")
    world.grow()
    await until(lambda: any(c["type"] == "NodeResizeError" for c in world.status["conditions"]))
    why = "Expander.NodeExpand failed to expand the volume : rpc error: code = Internal desc = busy"
    (condition,) = [c for c in world.status["conditions"] if c["type"] == "NodeResizeError"]
    assert condition["message"] == f"failed to expand pvc with {why}"
    world.driver.refuse.clear()
    assert world.expansions() == 1, "its own condition is no reason to try again"
    async with asyncio.timeout(30):
        while dig(world.status, "capacity", "storage") != "2Gi":
            await world.clock.advance(0.5)
            await asyncio.sleep(0.005)
    failed = f'NodeExpandVolume.NodeExpandVolume failed for volume "pv" : {why}'
    await until(lambda: ("Pod", "VolumeResizeFailed", failed) in world.events())


@pytest.mark.parametrize(
    ("code", "status"),
    [(INVALID_ARGUMENT, "NodeResizeInfeasible"), (FAILED_PRECONDITION, "NodeResizeInProgress")],
    ids=["infeasible", "in use"],
)
async def test_what_cannot_be_is_not_tried_again(world: Growing, code: int, status: str) -> None:
    await world.mount(world.pod())
    world.driver.refuse["NodeExpandVolume"] = RpcError(code, "no")
    world.grow()
    await until(lambda: any(c["type"] == "NodeResizeError" for c in world.status["conditions"]))
    assert world.status["allocatedResourceStatuses"] == {"storage": status}
    await world.clock.advance(300.0)
    assert world.expansions() == 1


async def test_a_volume_that_is_mounted_to_read_only_is_left_alone(world: Growing) -> None:
    volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": "c", "readOnly": True}}]
    await world.mount(world.pod(volumes=volumes))
    world.grow()
    text = 'MountVolume.NodeExpandVolume failed for volume "pv" requested read-only file system'
    await until(lambda: ("Pod", "FileSystemResizeFailed", text) in world.events())
    assert world.expansions() == 0


@pytest.mark.parametrize(
    ("status", "size"),
    [
        pytest.param({"capacity": {"storage": "1Gi"}}, "2Gi", id="an old resizer"),
        pytest.param({"capacity": {"storage": "2Gi"}}, "", id="all is done"),
        pytest.param({}, "", id="not bound yet"),
        pytest.param(
            {"capacity": {"storage": "1Gi"}, "allocatedResourceStatuses": {"storage": "ControllerResizeInProgress"}},
            "",
            id="the controller's turn",
        ),
        pytest.param(
            {"capacity": {"storage": "1Gi"}, "allocatedResourceStatuses": {"storage": "NodeResizeInProgress"}},
            "2Gi",
            id="cut off in the middle",
        ),
    ],
)
def test_when_it_is_the_nodes_turn(status: Object, size: str) -> None:
    assert wanted_size({"status": status}, {"spec": {"capacity": {"storage": "2Gi"}}}) == size


def test_other_resources_keep_their_statuses() -> None:
    statuses = {"storage": "NodeResizeInProgress", "example.com/x": "NodeResizePending"}
    claim = {"metadata": {"resourceVersion": "7"}, "status": {"allocatedResourceStatuses": statuses}}
    assert finished(claim, "2Gi") == {
        "metadata": {"resourceVersion": "7"},
        "status": {
            "capacity": {"storage": "2Gi"},
            "conditions": None,
            "allocatedResourceStatuses": {"storage": None},
        },
    }
