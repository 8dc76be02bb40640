"""From a pod to its binding, seen in the API and in the events users read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kone.aio.clock import FakeClock, settle
from kone.apimachinery.errors import StatusError, conflict
from kone.apimachinery.kinds import EVENTS, GVR, NODES, PODS
from kone.apimachinery.objects import Object, dig, find_condition, replace_in
from kone.client.events import EventRecorder
from kone.scheduler.scheduler import TELLING_MAX, Scheduler
from tests.fakes import FakeClient
from tests.scheduler.support import node, pod


class World:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.client = FakeClient(self.clock)
        self.recorder = EventRecorder(self.client, "default-scheduler", clock=self.clock)
        self.scheduler = Scheduler(self.client, {self.recorder.component: self.recorder}, self.clock)

    def node(self, *args: Any, **more: Any) -> Object:
        return self.client.put(NODES, node(*args, **more))

    def pod(self, *args: Any, **more: Any) -> Object:
        return self.client.put(PODS, pod(*args, **more))

    async def settle(self) -> None:
        await settle()
        await self.clock.advance(0.1)  # events linger

    def look(self, made: Object) -> Object:
        return self.client.look(PODS, made)

    def where(self, made: Object) -> str:
        return str(dig(self.look(made), "spec", "nodeName", default=""))

    def why(self, made: Object) -> tuple[str, str]:
        condition = find_condition(self.look(made), "PodScheduled") or {}
        return condition.get("reason", ""), condition.get("message", "")

    def events(self, reason: str) -> list[Object]:
        return [event for event in self.client.of(EVENTS) if event["reason"] == reason]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    await made.scheduler.stop()
    await made.recorder.stop()


async def test_a_pod_is_bound_and_the_user_told(world: World) -> None:
    world.node("n1")
    await world.scheduler.start()
    made = world.pod("p")
    await world.settle()
    assert world.where(made) == "n1"
    [event] = world.events("Scheduled")
    assert event["message"] == "Successfully assigned ns/p to n1"
    assert (event["type"], event["action"], event["reportingComponent"]) == ("Normal", "Binding", "default-scheduler")
    assert event["source"] == {}


async def test_pods_that_waited_before_the_start_are_bound_too(world: World) -> None:
    world.node("n1")
    made = world.pod("p")
    await world.scheduler.start()
    await world.settle()
    assert world.where(made) == "n1"


async def test_who_fits_nowhere_is_told_why_and_bound_when_there_is_room(world: World) -> None:
    world.node("n1", cpu="1")
    await world.scheduler.start()
    first, second = world.pod("a", requests={"cpu": "1"}), world.pod("b", requests={"cpu": "1"})
    await world.settle()
    assert world.where(first) == "n1"
    message = (
        "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: "
        "1 No preemption victims found for incoming pod."
    )
    assert world.why(second) == ("Unschedulable", message)
    [event] = world.events("FailedScheduling")
    assert (event["type"], event["action"], event["message"]) == ("Warning", "Scheduling", message)
    await world.client.delete(PODS, "a", namespace="ns", grace_s=0)
    await world.settle()
    assert world.where(second) == "n1"


async def test_a_finished_pod_makes_room(world: World) -> None:
    world.node("n1", cpu="1")
    await world.scheduler.start()
    first, second = world.pod("a", requests={"cpu": "1"}), world.pod("b", requests={"cpu": "1"})
    await world.settle()
    world.client.overwrite(PODS, replace_in(world.look(first), ("status", "phase"), "Succeeded"))
    await world.settle()
    assert world.where(second) == "n1"


async def test_without_any_node_pods_wait_for_the_first(world: World) -> None:
    await world.scheduler.start()
    made = world.pod("p")
    await world.settle()
    assert world.why(made) == ("Unschedulable", "no nodes available to schedule pods")
    world.node("n1")
    await world.settle()
    assert world.where(made) == "n1"


async def test_uncordoning_a_node_lets_pods_in(world: World) -> None:
    closed = world.node("n1", unschedulable=True)
    await world.scheduler.start()
    made = world.pod("p")
    await world.settle()
    assert world.why(made)[1].startswith("0/1 nodes are available: 1 node(s) were unschedulable.")
    world.client.overwrite(NODES, replace_in(closed, ("spec",), {}))
    await world.settle()
    assert world.where(made) == "n1"


async def test_pods_of_other_schedulers_are_left_alone(world: World) -> None:
    world.node("n1")
    await world.scheduler.start()
    made = world.pod("p", schedulerName="mine")
    await world.settle()
    assert world.where(made) == ""


async def test_gates(world: World) -> None:
    world.node("n1")
    await world.scheduler.start()
    made = world.pod("p", schedulingGates=[{"name": "g"}])
    await world.settle()
    assert world.where(made) == ""
    world.client.overwrite(PODS, replace_in(world.look(made), ("spec", "schedulingGates"), []))
    await world.settle()
    assert world.where(made) == "n1"


async def test_pods_made_together_never_overfill_a_node(world: World) -> None:
    world.node("a", cpu="2")
    world.node("b", cpu="1")
    await world.scheduler.start()
    made = [world.pod(f"p{i}", requests={"cpu": "1"}) for i in range(5)]
    await world.settle()
    assert sorted(world.where(p) for p in made) == ["", "", "a", "a", "b"]


async def test_a_binding_that_fails_is_tried_again(world: World) -> None:
    world.node("n1", cpu="1")
    await world.scheduler.start()

    def refuse(verb: str, resource: GVR, obj: Object) -> StatusError | None:
        return conflict("pods/binding", "p", "not now") if obj.get("kind") == "Binding" else None

    world.client.refuse = refuse
    made = world.pod("p", requests={"cpu": "1"})
    await world.settle()
    assert world.where(made) == ""
    assert world.why(made)[0] == "SchedulerError"
    world.client.refuse = lambda verb, resource, obj: None
    await world.clock.advance(1.1)
    await world.settle()
    assert world.where(made) == "n1"


async def test_preemption(world: World) -> None:
    world.node("n1", cpu="1")
    await world.scheduler.start()
    low = world.pod("low", requests={"cpu": "1"}, priority=1, terminationGracePeriodSeconds=30)
    await world.settle()
    high = world.pod("high", requests={"cpu": "1"}, priority=100)
    await world.settle()
    assert dig(world.look(high), "status", "nominatedNodeName") == "n1"
    assert world.why(high)[1] == (
        "0/1 nodes are available: 1 Insufficient cpu. preemption: found a potential placement for pod on node n1, "
        "preempting 1 victims"
    )
    victim = world.look(low)
    assert victim["metadata"]["deletionTimestamp"]
    condition = find_condition(victim, "DisruptionTarget") or {}
    assert (condition["reason"], condition["message"]) == (
        "PreemptionByScheduler",
        "default-scheduler: preempting to accommodate a higher priority pod",
    )
    [event] = world.events("Preempted")
    assert event["message"] == f"Preempted by pod {high['metadata']['uid']} on node n1"
    assert "related" not in event
    await world.client.delete(PODS, "low", namespace="ns", grace_s=0)
    await world.settle()
    assert world.where(high) == "n1"


async def test_a_pod_that_cannot_be_understood_does_not_stop_the_others(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.node("n1")
    world.node("n2")
    await world.scheduler.start()
    term = {"labelSelector": {"matchExpressions": [{"key": "k", "operator": "Like"}]}, "topologyKey": "t"}
    affinity = {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    strange, plain = world.pod("strange", affinity=affinity), world.pod("plain")
    await world.settle()
    assert world.where(plain)
    assert world.where(strange) == ""
    assert world.why(strange)[0] == "SchedulerError"
    assert "scheduling failed: pod=ns/strange" in caplog.text


async def test_others_are_served_between_two_cycles(world: World) -> None:
    """A hundred waiting pods do not hold the event loop: whoever else is ready runs before they are all bound."""
    world.node("n1", pods=200)
    made = [world.pod(f"p{number}") for number in range(100)]
    await world.scheduler.start()
    seen: list[int] = []
    for _ in range(50):
        await asyncio.sleep(0)
        seen.append(sum(bool(world.where(one)) for one in made))
    assert any(0 < count < 100 for count in seen)
    await world.settle()
    assert all(world.where(one) == "n1" for one in made)


async def test_a_pod_waits_while_many_bindings_are_not_answered(world: World) -> None:
    world.node("n1", pods=200)
    asked: list[Object] = []
    answer = asyncio.Event()
    create = world.client.create

    async def slow(resource: GVR, obj: Object, **more: Any) -> Object:
        if obj["kind"] == "Binding":
            asked.append(obj)
            await answer.wait()
        return await create(resource, obj, **more)

    world.client.create = slow  # type: ignore[method-assign]
    made = [world.pod(f"p{number}") for number in range(100)]
    await world.scheduler.start()
    await world.settle()
    assert TELLING_MAX <= len(asked) <= TELLING_MAX + 2
    answer.set()
    await world.settle()
    assert all(world.where(one) == "n1" for one in made)


async def test_a_preemption_that_fails_does_not_hold_the_pod_for_ever(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.node("n1", cpu="1")
    world.pod("low", on="n1", requests={"cpu": "1"}, priority=1)
    patch = world.client.patch

    async def broken(*words: Any, **more: Any) -> Object:
        if "DisruptionTarget" in str(words):
            raise RuntimeError("boom")
        return await patch(*words, **more)

    world.client.patch = broken  # type: ignore[method-assign]
    await world.scheduler.start()
    high = world.pod("high", requests={"cpu": "1"}, priority=100)
    await world.settle()
    assert "boom" in caplog.text
    world.client.patch = patch  # type: ignore[method-assign]
    await world.clock.advance(15)
    await world.settle()
    await world.client.delete(PODS, "low", namespace="ns", grace_s=0)
    await world.clock.advance(15)
    await world.settle()
    assert world.where(high) == "n1"
