"""Which of the nodes that fit is better: what plugins are told by arguments, and what they do when told nothing."""

from __future__ import annotations

from typing import Any

import pytest

from kone.apimachinery.objects import Object
from kone.scheduler.framework import CycleState, Plugin
from kone.scheduler.plugins.balanced_allocation import balance
from kone.scheduler.plugins.inter_pod_affinity import InterPodAffinity
from kone.scheduler.plugins.node_affinity import NodeAffinity
from kone.scheduler.plugins.node_resources_fit import NodeResourcesFit
from kone.scheduler.plugins.pod_topology_spread import PodTopologySpread
from kone.scheduler.pod_info import PodInfo
from kone.scheduler.score_shape import on_line
from tests.scheduler.support import World, node, pod


def scores(plugin: Plugin, made: Object) -> dict[str, int]:
    """Each node's score, normalized; none where the plugin has nothing to say."""
    state, info, nodes = CycleState(), PodInfo(made), plugin.cluster.nodes()
    if plugin.pre_score(state, info, nodes) is not None:
        return {}
    found = {each.name: plugin.score(state, info, each) for each in nodes}
    plugin.normalize(state, info, found)
    return found


def by(kind: str, *resources: tuple[str, int], shape: tuple[tuple[int, int], ...] = ()) -> dict[str, Any]:
    strategy: dict[str, Any] = {"type": kind, "resources": [{"name": n, "weight": w} for n, w in resources]}
    if shape:
        strategy["requestedToCapacityRatio"] = {"shape": [{"utilization": u, "score": s} for u, s in shape]}
    return {"scoringStrategy": strategy}


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        # The node of 4 cores and 8 GiB will have 3 cores and 2 GiB asked for.
        pytest.param({}, (25 + 75) // 2, id="the emptier by default"),
        pytest.param(by("LeastAllocated", ("cpu", 3), ("memory", 1)), (3 * 25 + 75) // 4, id="cpu weighs thrice"),
        pytest.param(by("MostAllocated", ("cpu", 1), ("memory", 1)), (75 + 25) // 2, id="the fuller"),
        pytest.param(by("MostAllocated", ("cpu", 1), ("example.com/gpu", 5)), 75, id="what is not asked for"),
        pytest.param(
            by("RequestedToCapacityRatio", ("cpu", 1), ("memory", 1), shape=((0, 0), (100, 10))),
            (75 + 25) // 2,
            id="a line from empty to full",
        ),
        pytest.param(
            by("RequestedToCapacityRatio", ("cpu", 1), ("memory", 1), shape=((0, 0), (70, 0), (80, 10))),
            50,
            id="a score of 0 has no weight",
        ),
    ],
)
def test_room_by_strategy(args: dict[str, Any], expected: int) -> None:
    world = World(node("n1")).run(pod(on="n1", requests={"cpu": "2", "memory": "1Gi"}))
    wanted = pod(requests={"cpu": "1", "memory": "1Gi"})
    assert scores(NodeResourcesFit(world.cluster, args), wanted) == {"n1": expected}


@pytest.mark.parametrize(
    ("at", "value"), [(0, 100), (10, 100), (30, 50), (40, 25), (50, 0), (90, 0)], ids=lambda number: str(number)
)
def test_a_line_through_points(at: int, value: int) -> None:
    assert on_line([(10, 100), (50, 0)], at) == value


def test_resources_that_are_ignored() -> None:
    world = World(node("n1"))
    plugin = NodeResourcesFit(world.cluster, {"ignoredResources": ["a/x"], "ignoredResourceGroups": ["example.com"]})
    [info] = world.cluster.nodes()

    def fits(name: str) -> bool:
        return plugin.filter(CycleState(), PodInfo(pod(requests={name: "1"})), info) is None

    assert (fits("a/x"), fits("example.com/any"), fits("a/y")) == (True, True, False)


def test_balance_of_three() -> None:
    """Shares of 0, 50 and 100 % deviate by sqrt(1/6) = 0.408 from their mean."""
    assert balance({"cpu": 0, "memory": 5, "gpu": 10}, {"cpu": 10, "memory": 10, "gpu": 10}) == 59


def test_pods_of_a_service_are_spread_over_hosts_without_being_told() -> None:
    world = World(node("n1"), node("n2"))
    world.cluster.services["ns"] = {"web": {"app": "web"}}
    world.run(pod(on="n1", labels={"app": "web"}), pod(on="n1", labels={"app": "web"}), pod(on="n2"))
    plugin = PodTopologySpread(world.cluster)
    found = scores(plugin, pod(labels={"app": "web"}))
    assert found["n2"] == 100
    assert found["n1"] < found["n2"]
    assert scores(plugin, pod(labels={"app": "other"})) == {}
    assert scores(PodTopologySpread(world.cluster, {"defaultingType": "List"}), pod(labels={"app": "web"})) == {}


def test_pods_of_a_replica_set_are_spread_over_zones_that_there_are() -> None:
    zones = {"n1": "a", "n2": "a", "n3": "b"}
    world = World(*(node(name, labels={"topology.kubernetes.io/zone": zone}) for name, zone in zones.items()))
    world.cluster.selectors["uid-rs"] = {"matchLabels": {"app": "web"}}
    world.run(pod(on="n1", labels={"app": "web"}))
    wanted = pod(labels={"app": "web"})
    wanted["metadata"]["ownerReferences"] = [{"kind": "ReplicaSet", "uid": "uid-rs", "controller": True}]
    found = scores(PodTopologySpread(world.cluster), wanted)
    assert found["n3"] > found["n2"] > found["n1"]


def test_constraints_by_default_that_forbid() -> None:
    rule = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule"}
    world = World(node("n1"), node("n2"))
    world.cluster.services["ns"] = {"web": {"app": "web"}}
    world.run(pod(on="n1", labels={"app": "web"}))
    plugin = PodTopologySpread(world.cluster, {"defaultingType": "List", "defaultConstraints": [rule]})
    state, wanted = CycleState(), PodInfo(pod(labels={"app": "web"}))
    assert plugin.pre_filter(state, wanted, world.cluster.nodes()) is None
    assert [plugin.filter(state, wanted, each) is None for each in world.cluster.nodes()] == [False, True]


def test_affinity_that_is_added_to_every_pod() -> None:
    wanted = {"key": "pool", "operator": "In", "values": ["batch"]}
    added = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [wanted]}]}}
    world = World(node("n1"), node("n2", labels={"pool": "batch"}))
    plugin = NodeAffinity(world.cluster, {"addedAffinity": added})
    answers = [plugin.filter(CycleState(), PodInfo(pod()), each) for each in world.cluster.nodes()]
    assert answers[0] is not None
    assert answers[0].reasons == ("node(s) didn't match scheduler-enforced node affinity",)
    assert answers[1] is None


def test_how_much_an_existing_pods_affinity_weighs() -> None:
    term = {"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "kubernetes.io/hostname"}
    required = {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    preferred = {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 50, "podAffinityTerm": term}]}
    world = World(node("n1"), node("n2"))
    world.run(pod(on="n1", affinity=required), pod(on="n2", affinity={"podAffinity": preferred}))
    wanted = pod(labels={"app": "web"})
    assert scores(InterPodAffinity(world.cluster), wanted) == {"n1": 0, "n2": 100}
    told = {"hardPodAffinityWeight": 80}
    assert scores(InterPodAffinity(world.cluster, told), wanted) == {"n1": 100, "n2": 0}
    told = {"hardPodAffinityWeight": 0, "ignorePreferredTermsOfExistingPods": True}
    assert scores(InterPodAffinity(world.cluster, told), wanted) == {}
