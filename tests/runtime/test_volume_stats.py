"""How full the volumes of claims are, by their driver and by their file system, and how that is told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kone.aio.clock import FakeClock
from kone.apimachinery.kinds import PERSISTENTVOLUMES
from kone.runtime import csi_messages, metrics, mounts
from kone.runtime.meters import Meters
from kone.runtime.volume_stats import ClaimedUse, VolumeStats
from tests.runtime.test_csi_volumes import World


@pytest.fixture
async def world(short_path: Path) -> AsyncIterator[World]:
    made = World(short_path)
    made.driver.abilities = (csi_messages.STAGE_UNSTAGE_VOLUME, csi_messages.GET_VOLUME_STATS)
    await made.driver.start()
    made.tell()
    yield made
    await made.volumes.stop()
    await made.driver.stop()
    for point in mounts.mounts_below(str(made.root)):
        mounts.unmount(point)


async def test_a_driver_counts_and_is_asked_once_a_minute(world: World) -> None:
    world.volume()
    await world.start()
    pod = world.pod()
    stats = VolumeStats(world.client, world.csi, world.root, world.clock)
    assert await stats.of(pod) == [], "it is not mounted yet"
    await world.mount(pod)
    await world.clock.advance(60.0)
    (use,) = await stats.of(pod)
    assert (use.volume, use.namespace, use.claim) == ("v", "n", "c")
    assert (use.capacity_bytes, use.available_bytes, use.used_bytes, use.inodes_used) == (1000, 900, 100, 1)
    await stats.of(pod)
    assert len(world.driver.called("NodeGetVolumeStats")) == 1
    await world.clock.advance(60.0)
    await stats.of(pod)
    assert len(world.driver.called("NodeGetVolumeStats")) == 2


async def test_a_driver_that_does_not_count(world: World) -> None:
    world.driver.abilities = (csi_messages.STAGE_UNSTAGE_VOLUME,)
    world.volume()
    await world.start()
    pod = world.pod()
    await world.mount(pod)
    assert await VolumeStats(world.client, world.csi, world.root, world.clock).of(pod) == []


async def test_a_local_volume_is_as_full_as_its_file_system(world: World) -> None:
    world.volume()
    (world.root.parent / "content").mkdir()
    volume = world.client.of(PERSISTENTVOLUMES)[0]
    spec = {key: value for key, value in volume["spec"].items() if key != "csi"}
    local = {"path": str(world.root.parent / "content")}
    world.client.overwrite(PERSISTENTVOLUMES, {**volume, "spec": {**spec, "local": local}})
    await world.start()
    pod = world.pod()
    await world.mount(pod)
    (use,) = await VolumeStats(world.client, world.csi, world.root, FakeClock()).of(pod)
    assert use.capacity_bytes
    assert use.inodes


def test_metrics_of_a_block_device_are_its_capacity() -> None:
    class Source:
        def pods(self) -> list[object]:
            return []

    claimed = [ClaimedUse("v", "ns", "c", capacity_bytes=5)]
    page = metrics.kubelet_metrics(Source(), "n1", Meters(), claimed)  # type: ignore[arg-type]
    told = [line for line in page.splitlines() if line.startswith("kubelet_volume_stats")]
    assert told == ['kubelet_volume_stats_capacity_bytes{namespace="ns",persistentvolumeclaim="c"} 5']
