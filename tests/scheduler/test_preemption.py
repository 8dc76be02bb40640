"""Who is asked away so that a pod of higher priority fits."""

from __future__ import annotations

from typing import Any

import pytest

from kone.apimachinery.objects import Key, Object
from kone.scheduler.pod_info import PodInfo
from kone.scheduler.preemption import Preemption, preempt
from tests.scheduler.support import World, node, pod


def asked(world: World, made: Object) -> Preemption:
    return preempt(world.framework, PodInfo(made), world.fail(made), enough=100)


def names(found: Preemption) -> tuple[str, list[str]]:
    assert found.victims is not None
    return found.victims.node.name, [victim.name for victim in found.victims.pods]


def low(name: str, on: str, cpu: str = "1", priority: int = 1, **more: Any) -> Object:
    return pod(name, on=on, requests={"cpu": cpu}, priority=priority, **more)


def high(cpu: str = "1", **more: Any) -> Object:
    return pod("high", requests={"cpu": cpu}, priority=100, **more)


def test_the_lower_one_goes() -> None:
    found = asked(World(node(cpu="1")).run(low("q", "n1")), high())
    assert names(found) == ("n1", ["q"])
    assert found.message == "preemption: found a potential placement for pod on node n1, preempting 1 victims"


def test_no_more_go_than_must() -> None:
    world = World(node(cpu="3")).run(low("a", "n1", priority=1), low("b", "n1", priority=5), low("c", "n1", priority=3))
    assert names(asked(world, high("2"))) == ("n1", ["c", "a"])


def test_of_equals_the_one_that_started_last_goes() -> None:
    world = World(node(cpu="2")).run(
        low("old", "n1", started="2026-01-01T00:00:00Z"), low("new", "n1", started="2026-02-01T00:00:00Z")
    )
    assert names(asked(world, high())) == ("n1", ["new"])


@pytest.mark.parametrize(
    ("bound", "expected"),
    [
        pytest.param(
            [low("a1", "a", priority=9), low("b1", "b", priority=2)], ("b", ["b1"]), id="lowest highest victim"
        ),
        pytest.param(
            [low("a1", "a", "500m"), low("a2", "a", "500m"), low("b1", "b")], ("b", ["b1"]), id="fewest victims"
        ),
        pytest.param(
            [low("a1", "a", started="2026-01-01T00:00:00Z"), low("b1", "b", started="2026-02-01T00:00:00Z")],
            ("b", ["b1"]),
            id="the victim that started last",
        ),
    ],
)
def test_the_node_whose_victims_are_missed_least(bound: list[Object], expected: tuple[str, list[str]]) -> None:
    assert names(asked(World(node("a", cpu="1"), node("b", cpu="1")).run(*bound), high())) == expected


def test_a_disruption_budget_is_kept_where_it_can_be() -> None:
    world = World(node("a", cpu="1"), node("b", cpu="1")).run(
        low("a1", "a", priority=1, labels={"app": "db"}), low("b1", "b", priority=50)
    )
    world.cluster.budgets[Key("ns", "db")] = {
        "metadata": {"name": "db", "namespace": "ns"},
        "spec": {"selector": {"matchLabels": {"app": "db"}}},
        "status": {"disruptionsAllowed": 0},
    }
    assert names(asked(world, high())) == ("b", ["b1"])


@pytest.mark.parametrize(
    ("world", "made", "message"),
    [
        pytest.param(
            World(node(cpu="1")).run(low("q", "n1", priority=100)),
            high(),
            "0/1 nodes are available: 1 No preemption victims found for incoming pod.",
            id="equal priority",
        ),
        pytest.param(
            World(node(cpu="1")).run(low("q", "n1")),
            high("2"),
            "0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
            id="too big for the empty node",
        ),
        pytest.param(
            World(node("a", cpu="1"), node("b", unschedulable=True)).run(low("q", "a", priority=100)),
            high(),
            "0/2 nodes are available: 1 No preemption victims found for incoming pod, "
            "1 Preemption is not helpful for scheduling.",
            id="each node its reason",
        ),
        pytest.param(
            World(node(cpu="1")).run(low("q", "n1")),
            high(preemptionPolicy="Never"),
            "not eligible due to preemptionPolicy=Never.",
            id="never",
        ),
    ],
)
def test_nobody_goes(world: World, made: Object, message: str) -> None:
    found = asked(world, made)
    assert found.victims is None
    assert found.message == f"preemption: {message}"


def test_while_victims_are_leaving_no_others_are_asked() -> None:
    leaving = low("q", "n1")
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    leaving["status"]["conditions"] = [
        {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}
    ]
    made = high()
    made["status"]["nominatedNodeName"] = "n1"
    found = asked(World(node(cpu="1")).run(leaving), made)
    assert found.message == "preemption: not eligible due to a terminating pod on the nominated node."
    assert not found.clears_nomination


def test_affinity_to_who_goes_is_reckoned_anew() -> None:
    term = {"labelSelector": {"matchLabels": {"app": "x"}}, "topologyKey": "kubernetes.io/hostname"}
    apart = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    world = World(node()).run(low("q", "n1", labels={"app": "x"}))
    assert names(asked(world, high("100m", affinity=apart))) == ("n1", ["q"])
