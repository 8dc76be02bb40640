"""Probes in time: when they start, how many failures count, and what they make of a container."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from kone.aio.clock import FakeClock
from kone.apimachinery.objects import Object
from kone.runtime.handlers import Answer
from kone.runtime.parts import ProbeResults
from kone.runtime.probes import Probes
from kone.runtime.runtime import ContainerState, ContainerStatus, PodMeta

OK, FAIL = Answer("success"), Answer("failure", "no")


@dataclass
class FakeHandlers:
    """Answers exec probes by the word in their command; counts how often each was asked."""

    answers: dict[str, Answer] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def exec(self, container_id: str, command: list[str], timeout_s: float) -> Answer:
        self.asked.append(command[0])
        return self.answers.get(command[0], OK)


@dataclass
class FakeRecorder:
    told: list[tuple[str, str]] = field(default_factory=list)

    def event(self, about: Object, kind: str, reason: str, message: str, **more: Any) -> None:
        self.told.append((reason, message))


class World:
    """One pod of one container "c", and its probes."""

    def __init__(self, **probes: dict[str, Any]) -> None:
        self.clock = FakeClock()
        self.handlers, self.recorder, self.synced = FakeHandlers(), FakeRecorder(), list[str]()
        self.probes = Probes(self.handlers, self.recorder, self.clock, self.synced.append)  # type: ignore[arg-type]
        self.container: Object = {"name": "c"}
        for kind, probe in probes.items():
            self.container[f"{kind}Probe"] = {"exec": {"command": [kind]}, **probe}
        self.pod: Object = {
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [self.container]},
        }
        meta = PodMeta("p", "n", "u")
        now = self.clock.now()
        self.status = ContainerStatus("id1", "s", meta, "c", ContainerState.RUNNING, now, started_at=now)

    def sync(self) -> None:
        self.probes.sync(self.pod, {"c": self.status}, "10.0.0.1")

    @property
    def results(self) -> ProbeResults:
        return self.probes.results(self.pod, self.container, "id1")


async def test_without_probes_a_running_container_is_started_and_ready() -> None:
    world = World()
    world.sync()
    assert world.results == ProbeResults(started=True, ready=True)
    await world.probes.stop()


async def test_readiness_waits_for_its_delay_and_its_first_success() -> None:
    world = World(readiness={"initialDelaySeconds": 5, "periodSeconds": 2})
    world.sync()
    await world.clock.advance(4.9)
    assert not world.results.ready
    assert world.handlers.asked == []
    await world.clock.advance(0.2)
    assert world.results.ready
    assert world.synced == ["u"]
    await world.probes.stop()


async def test_three_failures_in_a_row_make_unready_and_one_success_ready_again() -> None:
    world = World(readiness={"periodSeconds": 1})
    world.sync()
    await world.clock.advance(0)
    assert world.results.ready
    world.handlers.answers["readiness"] = FAIL
    await world.clock.advance(2)
    assert world.results.ready
    await world.clock.advance(1)
    assert not world.results.ready
    assert world.recorder.told == [("Unhealthy", "Readiness probe failed: no")] * 3
    world.handlers.answers["readiness"] = OK
    await world.clock.advance(1)
    assert world.results.ready
    await world.probes.stop()


async def test_liveness_failure_stays_until_the_container_is_replaced() -> None:
    world = World(liveness={"periodSeconds": 1, "failureThreshold": 2})
    world.handlers.answers["liveness"] = FAIL
    world.sync()
    await world.clock.advance(1)
    assert world.results.failed == "liveness"
    asked = len(world.handlers.asked)
    await world.clock.advance(10)
    assert len(world.handlers.asked) == asked
    world.status = ContainerStatus(
        "id2", "s", world.status.pod, "c", ContainerState.RUNNING, world.clock.now(), started_at=world.clock.now()
    )
    world.handlers.answers["liveness"] = OK
    world.sync()
    assert world.probes.results(world.pod, world.container, "id2").failed == ""
    await world.probes.stop()


async def test_the_others_wait_for_the_startup_probe() -> None:
    world = World(startup={"periodSeconds": 1, "failureThreshold": 30}, readiness={"periodSeconds": 1})
    world.handlers.answers["startup"] = FAIL
    world.sync()
    await world.clock.advance(5)
    assert set(world.handlers.asked) == {"startup"}
    assert world.results == ProbeResults(started=False, ready=False)
    world.handlers.answers["startup"] = OK
    await world.clock.advance(2)
    assert world.results == ProbeResults(started=True, ready=True)
    asked = world.handlers.asked.count("startup")
    await world.clock.advance(5)
    assert world.handlers.asked.count("startup") == asked
    await world.probes.stop()


async def test_startup_failures_end_the_container() -> None:
    world = World(startup={"periodSeconds": 1, "failureThreshold": 2})
    world.handlers.answers["startup"] = FAIL
    world.sync()
    await world.clock.advance(1)
    assert world.results == ProbeResults(False, False, "startup")
    await world.probes.stop()


async def test_a_pod_being_deleted_keeps_only_readiness() -> None:
    world = World(liveness={"periodSeconds": 1}, readiness={"periodSeconds": 1})
    world.sync()
    await world.clock.advance(1)
    world.pod["metadata"]["deletionTimestamp"] = "2026-11-25T00:00:00Z"
    world.sync()
    await world.clock.advance(0)
    world.handlers.asked.clear()
    await world.clock.advance(5)
    assert set(world.handlers.asked) == {"readiness"}
    await world.probes.stop()


async def test_after_a_restart_of_kone_a_ready_container_stays_ready_until_a_probe_says_otherwise() -> None:
    world = World(readiness={"periodSeconds": 10})
    world.pod["status"] = {
        "containerStatuses": [{"name": "c", "containerID": "docker://id1", "ready": True, "started": True}]
    }
    await world.clock.advance(60)
    world.sync()
    assert world.results.ready
    await world.probes.stop()


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Answer("warning", "redirected"), ("ProbeWarning", "Liveness probe warning: redirected")),
        (Answer("error", "gone"), ("Unhealthy", "Liveness probe errored and resulted in unknown state: gone")),
    ],
)
async def test_what_is_neither_success_nor_failure_is_told_and_changes_nothing(
    answer: Answer, told: tuple[str, str]
) -> None:
    world = World(liveness={"periodSeconds": 1, "failureThreshold": 1})
    world.handlers.answers["liveness"] = answer
    world.sync()
    await world.clock.advance(0)
    assert told in world.recorder.told
    assert world.results.failed == ""
    await world.probes.stop()
