"""Eviction in time: what the node says, whom it takes, whom it sends away."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kone.aio.clock import FakeClock
from kone.apimachinery.kinds import NODES
from kone.apimachinery.objects import Object, uid_of
from kone.runtime.disk_usage import DiskUsage
from kone.runtime.eviction import Eviction
from kone.runtime.eviction_signals import MEMORY, NODE_DISK, Observation
from kone.runtime.runtime import ContainerState, ContainerStatus, PodMeta
from kone.runtime.stats import ContainerUse, PodUse
from kone.runtime.usage import Usage
from tests.runtime.kubelet_world import RoomyHost, make_container, make_pod
from tests.runtime.kubelet_world import World as KubeletWorld

MEBI = 1 << 20
NODE: Object = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "uid": "n1"}}
LOW_MEMORY = {MEMORY: Observation(50 * MEBI, 1 << 30)}
LOW_DISK = {NODE_DISK: Observation(1, 100)}


class World:
    """A node with pods whose use of memory and disk (MiB) is said; each runs one container."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.host = RoomyHost(Path("/"), Path("/"))
        self.memory: dict[str, int] = {}
        self.volume: dict[str, int] = {}
        self.found: list[Object] = []
        self.evicted: list[tuple[str, str, Any]] = []
        self.told: list[tuple[str, str]] = []
        self.changes: list[frozenset[str]] = []
        self.freed = lambda: None
        self.eviction = Eviction(
            self,  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
            self,
            self.host,
            self,  # type: ignore[arg-type]
            self.clock,
            NODE,
            on_change=lambda: self.changes.append(self.eviction.pressures),
        )

    def add(self, name: str, *, memory: int = 0, volume: int = 0, **spec: Any) -> Object:
        pod = make_pod(name, **spec)
        pod["metadata"]["uid"] = name
        self.found.append(pod)
        self.memory[name], self.volume[name] = memory, volume
        return pod

    # the PodSource

    def pods_of_node(self) -> list[Object]:
        return self.found

    def containers(self, pod_uid: str) -> list[ContainerStatus]:
        meta = PodMeta(pod_uid, "default", pod_uid)
        return [ContainerStatus("i", "s", meta, "c", ContainerState.RUNNING, 0.0, pid=1)]

    async def evict(
        self, pod_uid: str, reason: str, message: str, grace_s: int | None = None, *, condition: Object | None = None
    ) -> None:
        assert (reason, grace_s) == ("Evicted", 1)
        self.evicted.append((pod_uid, message, condition))
        self.found = [pod for pod in self.found if uid_of(pod) != pod_uid]

    # Stats, and the PodSource's list of pods

    def pods(self, *, disk: bool | None = None) -> Any:
        return self.found if disk is None else self._measured()

    async def _measured(self) -> list[PodUse]:
        return [await self.pod(pod, self.containers(uid_of(pod)), disk=True) for pod in self.found]

    async def pod(self, pod: Object, running: Any, *, disk: bool, max_age_s: float = 0) -> PodUse:
        used = Usage(working_set_bytes=self.memory[uid_of(pod)] * MEBI)
        volumes = {v["name"]: DiskUsage(self.volume[uid_of(pod)] * MEBI) for v in pod["spec"].get("volumes") or ()}
        return PodUse(pod, [ContainerUse(status, used) for status in running], used, (), volumes)

    # images, events

    async def remove_unused(self, wanted_bytes: int | None = None) -> int:
        self.freed()
        return 0

    def event(
        self, about: Object, kind: str, reason: str, message: str, *, annotations: Mapping[str, str] | None = None
    ) -> None:
        self.told.append((reason, message))


@pytest.fixture
def world() -> World:
    return World()


async def test_nothing_is_short_nothing_happens(world: World) -> None:
    world.add("p", memory=5000)
    assert not await world.eviction.look()
    assert world.eviction.pressures == set()
    assert (world.evicted, world.told, world.changes) == ([], [], [])


async def test_short_of_memory_the_worst_pod_goes_and_says_why(world: World) -> None:
    world.add("small", memory=1)
    world.add("large", memory=200)
    world.host.shown = dict(LOW_MEMORY)
    assert await world.eviction.look()
    assert world.changes == [{"MemoryPressure"}]
    [(name, message, condition)] = world.evicted
    assert name == "large"
    assert message == (
        "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. "
        "Container c was using 200Mi, request is 0, has larger consumption of memory. "
    )
    assert condition == {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "TerminationByKubelet",
        "message": message,
    }
    assert world.told == [("EvictionThresholdMet", "Attempting to reclaim memory"), ("Evicted", message)]


async def test_pods_that_the_node_needs_stay_and_the_next_goes(world: World) -> None:
    world.add("critical", memory=500, priority=2_000_001_000)
    world.add("other", memory=1, priority=5)
    world.host.shown = dict(LOW_MEMORY)
    assert await world.eviction.look()
    assert [name for name, _, _ in world.evicted] == ["other"]
    assert not await world.eviction.look()


async def test_short_of_disk_images_go_first_and_may_be_enough(world: World) -> None:
    world.add("p")
    world.host.shown = dict(LOW_DISK)
    world.freed = world.host.shown.clear
    assert not await world.eviction.look()
    assert world.evicted == []
    assert world.eviction.pressures == {"DiskPressure"}


async def test_short_of_disk_still(world: World) -> None:
    world.add("p")
    world.add("q", volume=10, volumes=[{"name": "v", "emptyDir": {}}])
    world.host.shown = dict(LOW_DISK)
    assert await world.eviction.look()
    assert [name for name, _, _ in world.evicted] == ["q"]


async def test_a_pod_over_its_limit_goes_whatever_the_node_has(world: World) -> None:
    volumes = [{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}]
    world.add("within", volume=1, volumes=volumes)
    world.add("over", volume=5, volumes=volumes)
    assert await world.eviction.look()
    message = 'Usage of EmptyDir volume "v" exceeds the limit "1Mi". '
    assert world.evicted == [("over", message, None)]
    assert world.told == [("Evicted", message)]
    assert world.eviction.pressures == set()


async def test_looks_every_ten_seconds_and_soon_after_an_eviction(world: World) -> None:
    world.add("a", memory=200)
    world.add("b", memory=100)
    await world.eviction.start()
    await world.clock.advance(9)
    world.host.shown = dict(LOW_MEMORY)
    assert world.evicted == []
    await world.clock.advance(1)
    assert [name for name, _, _ in world.evicted] == ["a"]
    await world.clock.advance(1)
    assert [name for name, _, _ in world.evicted] == ["a", "b"]
    world.host.shown = {}
    await world.clock.advance(290)
    assert world.eviction.pressures == {"MemoryPressure"}
    await world.clock.advance(30)
    assert world.eviction.pressures == set()
    assert world.changes == [{"MemoryPressure"}, set()]
    await world.eviction.stop()


TOLERANT = {"key": "node.kubernetes.io/memory-pressure", "operator": "Exists", "effect": "NoSchedule"}


@pytest.mark.parametrize(
    ("pressures", "pod", "refused"),
    [
        (set(), make_pod("p"), False),
        ({"MemoryPressure"}, make_pod("p"), True),
        ({"MemoryPressure"}, make_pod("p", make_container(resources={"requests": {"memory": "1Mi"}})), False),
        ({"MemoryPressure"}, make_pod("p", tolerations=[TOLERANT]), False),
        ({"MemoryPressure"}, make_pod("p", tolerations=[{"operator": "Exists"}]), False),
        ({"MemoryPressure"}, make_pod("p", tolerations=[{**TOLERANT, "effect": "NoExecute"}]), True),
        ({"DiskPressure"}, make_pod("p", tolerations=[{"operator": "Exists"}]), True),
        ({"DiskPressure"}, make_pod("p", priority=2_000_000_000), False),
    ],
    ids=[
        "no pressure",
        "best effort",
        "burstable",
        "tolerates it",
        "tolerates everything",
        "tolerates something else",
        "disk pressure is for all",
        "but not for what the node needs",
    ],
)
def test_who_is_taken_under_pressure(world: World, pressures: set[str], pod: Object, refused: bool) -> None:
    world.eviction.pressures = frozenset(pressures)
    assert (world.eviction.refuse(pod) is not None) == refused


def test_a_refusal_names_the_conditions(world: World) -> None:
    world.eviction.pressures = frozenset({"MemoryPressure", "DiskPressure"})
    verdict = world.eviction.refuse(make_pod("p"))
    assert verdict is not None
    assert (verdict.reason, verdict.message) == (
        "Evicted",
        "The node had condition: [DiskPressure MemoryPressure]. ",
    )


# In a whole kubelet


async def test_a_node_under_pressure_says_so_at_once_and_rejects_pods(short_path: Path) -> None:
    world = KubeletWorld(short_path)
    await world.start()
    world.host.shown = dict(LOW_MEMORY)
    await world.advance(10)
    node = await world.client.get(NODES, "n1")
    conditions = {c["type"]: (c["status"], c["reason"]) for c in node["status"]["conditions"]}
    assert conditions["MemoryPressure"] == ("True", "KubeletHasInsufficientMemory")
    await world.create("p")
    status = world.pod("p")["status"]
    assert (status["phase"], status["reason"]) == ("Failed", "Evicted")
    assert status["message"] == "Pod was rejected: The node had condition: [MemoryPressure]. "
    assert world.runtime.running() == []
    await world.stop()
