"""Probes in time: when they start, how many failures count, and what they make of a container."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
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

    clock: FakeClock | None = None
    takes_s: float = 0.0

    async def exec(self, container_id: str, command: list[str], timeout_s: float) -> Answer:
        self.asked.append(" ".join(command))
        if self.clock is not None and self.takes_s:
            await self.clock.sleep(self.takes_s)
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
        self.handlers = FakeHandlers(clock=self.clock)
        self.recorder, self.synced = FakeRecorder(), list[str]()
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


async def test_probes_keep_to_their_period_however_long_one_takes() -> None:
    world = World(readiness={"periodSeconds": 5})
    world.handlers.takes_s = 2
    world.sync()
    await world.clock.advance(20)  # at 0, 5, 10, 15, 20
    assert len(world.handlers.asked) == 5
    world.handlers.takes_s = 6
    await world.clock.advance(25)  # the one at 20 took 2 s; those at 25 and 35 each miss a beat, 45 begins
    assert len(world.handlers.asked) == 8
    await world.probes.stop()


async def test_after_a_long_startup_readiness_is_asked_at_once() -> None:
    world = World(startup={"periodSeconds": 1, "failureThreshold": 300}, readiness={"periodSeconds": 10})
    world.handlers.answers["startup"] = FAIL
    world.sync()
    await world.clock.advance(60)
    world.handlers.answers["startup"] = OK
    await world.clock.advance(1)
    assert world.results == ProbeResults(started=True, ready=True)
    await world.probes.stop()


async def test_a_pod_deleted_before_it_started_counts_as_started() -> None:
    world = World(startup={"periodSeconds": 1, "failureThreshold": 2}, readiness={"periodSeconds": 1})
    world.handlers.answers["startup"] = FAIL
    world.sync()
    await world.clock.advance(0)
    world.pod["metadata"]["deletionTimestamp"] = "2026-11-25T00:00:00Z"
    world.sync()
    await world.clock.advance(5)
    assert world.results == ProbeResults(started=True, ready=True)
    await world.probes.stop()


async def test_a_clock_that_was_set_back_does_not_put_off_the_first_probe() -> None:
    world = World(readiness={"initialDelaySeconds": 5})
    world.status = replace(world.status, started_at=world.clock.now() + 86_400)
    world.sync()
    await world.clock.advance(5)
    assert world.results.ready
    await world.probes.stop()


async def test_commands_know_the_variables_that_the_manifest_itself_gives() -> None:
    world = World()
    world.container["env"] = [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {}}]
    world.container["livenessProbe"] = {"exec": {"command": ["test", "$(A)", "$(B)", "$(C)", "$$(A)"]}}
    world.sync()
    await world.clock.advance(0)
    assert world.handlers.asked == ["test 1  $(C) $(A)"]
    await world.probes.stop()


async def test_answers_are_counted_until_the_pod_is_gone() -> None:
    world = World(liveness={"periodSeconds": 1})
    world.sync()
    await world.clock.advance(1)
    world.handlers.answers["liveness"] = FAIL
    await world.clock.advance(1)
    about = ("c", "p", "n", "u")
    assert world.probes.counts == {("Liveness", "successful", *about): 2, ("Liveness", "failed", *about): 1}
    world.probes.remove("u")
    assert not world.probes.counts
    await world.probes.stop()
