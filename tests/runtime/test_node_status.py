"""The node as it says of itself: its status, what counts as a change, its lease."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kone.aio.clock import FakeClock, settle
from kone.apimachinery.kinds import LEASES, NAMESPACES, NODES
from kone.apimachinery.objects import find_condition
from kone.runtime.node_status import HostFacts, NodeInfo, NodeStatus, differs, node_status
from kone.runtime.runtime import Image, RuntimeStatus
from tests.fakes import FakeClient

INFO = NodeInfo("n1", [("InternalIP", "10.0.0.5"), ("Hostname", "n1")], 10250, ["10.244.0.0/24"])
FACTS = HostFacts(2, 4 << 30, 100 << 30, "m", "s", "b", "6.1", "Debian", "amd64")
UP = RuntimeStatus(True, name="docker", version="20.10.24")
DOWN = RuntimeStatus(False, "DockerDown", "cannot connect")


def test_allocatable_is_capacity_less_what_eviction_keeps_free() -> None:
    status = node_status(INFO, FACTS, UP, [], {}, 0)
    assert status["capacity"]["memory"] == f"{4 << 20}Ki"
    assert status["allocatable"]["memory"] == f"{(4 << 20) - 100 * 1024}Ki"
    assert status["capacity"]["cpu"] == "2"
    assert status["capacity"]["pods"] == "110"


def test_a_runtime_that_is_down_makes_the_node_not_ready_with_the_reason() -> None:
    condition = find_condition({"status": node_status(INFO, FACTS, DOWN, [], {}, 0)}, "Ready")
    assert condition is not None
    assert (condition["status"], condition["reason"]) == ("False", "KubeletNotReady")
    assert condition["message"] == "container runtime is down: DockerDown: cannot connect"


def test_heartbeats_alone_are_no_change_and_keep_the_transition_time() -> None:
    first = node_status(INFO, FACTS, UP, [], {}, 100)
    second = node_status(INFO, FACTS, UP, [], first, 200)
    assert not differs(first, second)
    ready = find_condition({"status": second}, "Ready")
    assert ready is not None
    assert ready["lastTransitionTime"] == "1970-01-01T00:01:40Z"
    assert differs(first, node_status(INFO, FACTS, DOWN, [], first, 200))


class Silent:
    def event(self, *args: Any, **more: Any) -> None: ...


async def test_a_node_that_moves_says_so_at_once() -> None:
    clock = FakeClock()
    client = FakeClient(clock=clock)

    async def status() -> RuntimeStatus:
        return UP

    async def images() -> Sequence[Image]:
        return []

    node = NodeStatus(client, Silent(), clock, INFO, FACTS, status, images)  # type: ignore[arg-type]
    await node.start()
    node.move([("InternalIP", "10.0.0.6"), ("Hostname", "edge")])
    await settle()
    moved = await client.get(NODES, "n1")
    assert moved["status"]["addresses"][0] == {"type": "InternalIP", "address": "10.0.0.6"}
    await node.stop()


async def test_a_node_registers_reports_and_renews_its_lease() -> None:
    clock = FakeClock()
    client = FakeClient(clock=clock)
    await client.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-node-lease"}})
    runtime = [UP]

    async def status() -> RuntimeStatus:
        return runtime[0]

    async def images() -> Sequence[Image]:
        return [Image("sha256:1", ["a:1"], size_bytes=5)]

    node = NodeStatus(client, Silent(), clock, INFO, FACTS, status, images)  # type: ignore[arg-type]
    await node.start()
    made = await client.get(NODES, "n1")
    assert made["metadata"]["labels"]["kubernetes.io/hostname"] == "n1"
    assert made["spec"]["podCIDR"] == "10.244.0.0/24"
    assert made["status"]["images"] == [{"names": ["a:1"], "sizeBytes": 5}]
    version = made["metadata"]["resourceVersion"]
    first = await client.get(LEASES, "n1", "kube-node-lease")
    await clock.advance(30)
    assert (await client.get(NODES, "n1"))["metadata"]["resourceVersion"] == version
    second = await client.get(LEASES, "n1", "kube-node-lease")
    assert second["spec"]["renewTime"] > first["spec"]["renewTime"]
    runtime[0] = DOWN
    await clock.advance(10)
    condition = find_condition(await client.get(NODES, "n1"), "Ready")
    assert condition is not None
    assert condition["status"] == "False"
    await node.stop()


async def test_what_others_say_that_the_node_has_can_be_given_out() -> None:
    clock = FakeClock()
    client = FakeClient(clock=clock)
    await client.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-node-lease"}})

    async def status() -> RuntimeStatus:
        return UP

    async def images() -> Sequence[Image]:
        return []

    node = NodeStatus(client, Silent(), clock, INFO, FACTS, status, images)  # type: ignore[arg-type]
    await node.start()
    await client.patch(NODES, "n1", {"status": {"capacity": {"example.com/beam": "1k"}}}, subresource="status")
    await clock.advance(10)
    found = (await client.get(NODES, "n1"))["status"]
    assert found["allocatable"]["example.com/beam"] == "1k"
    version = (await client.get(NODES, "n1"))["metadata"]["resourceVersion"]
    await clock.advance(30)
    assert (await client.get(NODES, "n1"))["metadata"]["resourceVersion"] == version
    await client.patch(NODES, "n1", {"status": {"capacity": {"example.com/beam": None}}}, subresource="status")
    await clock.advance(10)
    found = (await client.get(NODES, "n1"))["status"]
    assert "example.com/beam" not in {**found["capacity"], **found["allocatable"]}
    await node.stop()
