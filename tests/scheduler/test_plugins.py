"""What each plugin refuses, in upstream's words, and which node it prefers."""

from __future__ import annotations

from typing import Any

import pytest

from kone.apimachinery.objects import Object
from kone.scheduler.feed import node_changes
from kone.scheduler.framework import ClusterEvent, Happened
from kone.scheduler.plugins.node_affinity import NodeAffinity
from kone.scheduler.plugins.node_resources_fit import NodeResourcesFit
from kone.scheduler.pod_info import PodInfo
from kone.scheduler.snapshot import Cluster
from tests.scheduler.support import World, node, pod

NO_MATCH = "node(s) didn't match Pod's node affinity/selector"


def required(*terms: Object) -> Object:
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": list(terms)}}}


def expression(key: str, operator: str, *values: str) -> Object:
    return {"matchExpressions": [{"key": key, "operator": operator, "values": list(values)}]}


def anti(kind: str, topology: str = "kubernetes.io/hostname", **labels: str) -> Object:
    term = {"labelSelector": {"matchLabels": labels}, "topologyKey": topology}
    return {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


@pytest.mark.parametrize(
    ("nodes", "bound", "spec", "outcome"),
    [
        pytest.param([node()], [], {}, "n1", id="an empty node takes any pod"),
        pytest.param(
            [node()],
            [],
            {"nodeName": "other"},
            "0/1 nodes are available: 1 node(s) didn't match the requested node name.",
            id="node name",
        ),
        pytest.param(
            [node(unschedulable=True)],
            [],
            {},
            "0/1 nodes are available: 1 node(s) were unschedulable.",
            id="cordoned",
        ),
        pytest.param(
            [node(unschedulable=True)],
            [],
            {"tolerations": [{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}]},
            "n1",
            id="cordoned and tolerated",
        ),
        pytest.param(
            [node(taints=[{"key": "k", "value": "v", "effect": "NoSchedule"}])],
            [],
            {},
            "0/1 nodes are available: 1 node(s) had untolerated taint(s).",
            id="taint",
        ),
        pytest.param(
            [node(taints=[{"key": "k", "value": "v", "effect": "NoExecute"}])],
            [],
            {"tolerations": [{"key": "k", "value": "v"}]},
            "n1",
            id="tolerated taint",
        ),
        pytest.param(
            [node()],
            [],
            {"nodeSelector": {"no": "such"}},
            f"0/1 nodes are available: 1 {NO_MATCH}.",
            id="node selector",
        ),
        pytest.param(
            [node("a", labels={"gen": "3"}), node("b", labels={"gen": "5"})],
            [],
            {"affinity": required(expression("gen", "Gt", "4"))},
            "b",
            id="affinity greater than",
        ),
        pytest.param(
            [node("a"), node("b")],
            [],
            {"affinity": required({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["c"]}]})},
            "0/2 nodes are available: 2 node(s) didn't satisfy plugin(s) [NodeAffinity].",
            id="a node that is not there, by name",
        ),
        pytest.param(
            [node()],
            [pod("q", on="n1", containers=[{"name": "c", "ports": [{"hostPort": 80}]}])],
            {"containers": [{"name": "c", "ports": [{"hostPort": 80, "hostIP": "127.0.0.1"}]}]},
            "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports.",
            id="host port in use on every address",
        ),
        pytest.param(
            [node()],
            [pod("q", on="n1", containers=[{"name": "c", "ports": [{"hostPort": 80, "hostIP": "127.0.0.2"}]}])],
            {"containers": [{"name": "c", "ports": [{"hostPort": 80, "hostIP": "127.0.0.1"}]}]},
            "n1",
            id="host port in use on another address",
        ),
        pytest.param(
            [node(cpu="500m", memory="1Gi")],
            [pod("q", on="n1", requests={"cpu": "400m"})],
            {"requests": {"cpu": "200m", "memory": "2Gi"}},
            "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory.",
            id="too little cpu and memory",
        ),
        pytest.param(
            [node(pods="1")],
            [pod("q", on="n1")],
            {},
            "0/1 nodes are available: 1 Too many pods.",
            id="too many pods",
        ),
        pytest.param(
            [node("a", example_foo="1"), node("b", example_foo="4")],
            [],
            {"requests": {"example.com/foo": "2"}},
            "b",
            id="extended resource",
        ),
        pytest.param(
            [node("a", example_foo="1"), node("b", unschedulable=True), node("c")],
            [],
            {"requests": {"example.com/foo": "2"}},
            "0/3 nodes are available: 1 node(s) were unschedulable, 2 Insufficient example.com/foo.",
            id="reasons are counted and sorted",
        ),
        pytest.param(
            [node("a"), node("b")],
            [pod("q", on="a", labels={"app": "db"})],
            {"affinity": anti("podAffinity", app="db")},
            "a",
            id="near a pod",
        ),
        pytest.param(
            [node()],
            [],
            {"affinity": anti("podAffinity", app="db")},
            "0/1 nodes are available: 1 node(s) didn't match pod affinity rules.",
            id="nobody to be near",
        ),
        pytest.param(
            [node()],
            [],
            {"labels": {"app": "db"}, "affinity": anti("podAffinity", app="db")},
            "n1",
            id="the first of its kind",
        ),
        pytest.param(
            [node()],
            [pod("q", on="n1", labels={"app": "db"})],
            {"affinity": anti("podAntiAffinity", app="db")},
            "0/1 nodes are available: 1 node(s) didn't match pod anti-affinity rules.",
            id="away from a pod",
        ),
        pytest.param(
            [node()],
            [pod("q", on="n1", affinity=anti("podAntiAffinity", app="web"))],
            {"labels": {"app": "web"}},
            "0/1 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules.",
            id="a pod that wants to be alone",
        ),
        pytest.param(
            [node()],
            [pod("q", on="n1", namespace="other", labels={"app": "db"})],
            {"affinity": anti("podAntiAffinity", app="db")},
            "n1",
            id="affinity is within the namespace",
        ),
    ],
)
def test_where_a_pod_goes(nodes: list[Object], bound: list[Object], spec: Object, outcome: str) -> None:
    assert World(*nodes).run(*bound).place(pod("p", **spec)) == outcome


def spread(when: str = "DoNotSchedule", key: str = "zone", **more: Any) -> list[Object]:
    selector = {"matchLabels": {"app": "web"}}
    return [{"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": when, "labelSelector": selector, **more}]


ZONES = (node("a", labels={"zone": "a"}), node("b", labels={"zone": "b"}))


@pytest.mark.parametrize(
    ("nodes", "on", "constraints", "outcome"),
    [
        pytest.param(ZONES, ["a"], spread(), "b", id="1 and 0: the emptier zone"),
        pytest.param(ZONES, ["a", "b", "b"], spread(), "a", id="1 and 2: the emptier zone"),
        pytest.param(
            (*ZONES, node("c")),
            ["a"],
            spread(),
            "b",
            id="a node without the label is no domain",
        ),
        pytest.param(
            (node("c"),),
            [],
            spread(),
            "0/1 nodes are available: 1 node(s) didn't match pod topology spread constraints (missing required label).",
            id="no node has the label",
        ),
        pytest.param(
            (ZONES[0], node("b", labels={"zone": "b"}, unschedulable=True)),
            ["a"],
            spread(),
            "0/2 nodes are available: 1 node(s) didn't match pod topology spread constraints, "
            "1 node(s) were unschedulable.",
            id="the emptier zone is closed",
        ),
        pytest.param(
            (ZONES[0],),
            ["a"],
            spread(minDomains=2),
            "0/1 nodes are available: 1 node(s) didn't match pod topology spread constraints.",
            id="too few domains count as an empty one",
        ),
        pytest.param(ZONES, ["a"], spread("ScheduleAnyway"), "b", id="a wish is scored"),
    ],
)
def test_spreading(nodes: tuple[Object, ...], on: list[str], constraints: list[Object], outcome: str) -> None:
    world = World(*nodes).run(*(pod(f"q{i}", on=name, labels={"app": "web"}) for i, name in enumerate(on)))
    made = pod("p", labels={"app": "web"}, topologySpreadConstraints=constraints)
    assert world.place(made) == outcome


@pytest.mark.parametrize(
    ("nodes", "bound", "spec", "best"),
    [
        pytest.param(
            [node("a"), node("b")],
            [pod("q", on="a", requests={"cpu": "2", "memory": "4Gi"})],
            {"requests": {"cpu": "100m", "memory": "100Mi"}},
            "b",
            id="the emptier node",
        ),
        pytest.param(
            [node("a", taints=[{"key": "k", "effect": "PreferNoSchedule"}]), node("b")],
            [],
            {},
            "b",
            id="rather no tainted node",
        ),
        pytest.param(
            [node("a"), node("b", labels={"disk": "ssd"})],
            [],
            {
                "affinity": {
                    "nodeAffinity": {
                        "preferredDuringSchedulingIgnoredDuringExecution": [
                            {"weight": 1, "preference": expression("disk", "In", "ssd")}
                        ]
                    }
                }
            },
            "b",
            id="preferred label",
        ),
        pytest.param(
            [node("a"), node("b")],
            [pod("q", on="b", labels={"app": "cache"})],
            {
                "affinity": {
                    "podAffinity": {
                        "preferredDuringSchedulingIgnoredDuringExecution": [
                            {
                                "weight": 100,
                                "podAffinityTerm": {
                                    "labelSelector": {"matchLabels": {"app": "cache"}},
                                    "topologyKey": "kubernetes.io/hostname",
                                },
                            }
                        ]
                    }
                }
            },
            "b",
            id="rather near a pod",
        ),
    ],
)
def test_the_better_node(nodes: list[Object], bound: list[Object], spec: Object, best: str) -> None:
    for order in (nodes, nodes[::-1]):
        assert World(*order).run(*bound).place(pod("p", **spec)) == best


def test_a_node_declares_what_a_pod_needs() -> None:
    rule = {"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}
    needy = pod(containers=[{"name": "c", "image": "i", "restartPolicyRules": [rule]}])
    world = World(node("old"))
    assert world.place(needy) == "0/1 nodes are available: 1 node(s) didn't match Pod's required features."
    able = node("new")
    able["status"]["declaredFeatures"] = ["RestartAllContainersOnContainerExits"]
    assert node_changes(node("new"), able) == Happened.NODE_FEATURES
    world.cluster.set_node(able)
    assert world.place(needy) == "new"


def test_images_that_are_there_count() -> None:
    having = node("b")
    having["status"]["images"] = [{"names": ["docker.io/library/big:latest"], "sizeBytes": 900 * 1024 * 1024}]
    containers = [{"name": "c", "image": "docker.io/library/big"}]
    assert World(node("a"), having).place(pod("p", containers=containers)) == "b"


def test_equal_nodes_take_turns() -> None:
    world = World(node("a"), node("b"), node("c"))
    assert {world.place(pod(f"p{i}")) for i in range(3)} == {"a", "b", "c"}


def test_a_promised_place_is_kept_for_who_has_the_higher_priority() -> None:
    world = World(node(cpu="1"))
    waiting = PodInfo(pod("high", requests={"cpu": "1"}, priority=10))
    world.nominator.set(waiting, "n1")
    assert world.place(pod("low", requests={"cpu": "1"}, priority=1)).endswith("1 Insufficient cpu.")
    assert world.place(pod("higher", requests={"cpu": "1"}, priority=11)) == "n1"


# -- which news is good news -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "good"),
    [
        (None, node(cpu="1"), False),
        (None, node(cpu="2"), True),
        (node(cpu="1"), node(cpu="2"), True),
    ],
)
def test_a_node_wakes_who_would_fit_it_empty(old: Object | None, new: Object, good: bool) -> None:
    plugin = NodeResourcesFit(Cluster())
    what = Happened.NODE_ADDED if old is None else Happened.NODE_ALLOCATABLE
    assert plugin.wakes(PodInfo(pod(requests={"cpu": "2"})), ClusterEvent(what, old, new)) is good


def test_a_label_wakes_who_waited_for_it() -> None:
    plugin = NodeAffinity(Cluster())
    waiting = PodInfo(pod(nodeSelector={"disk": "ssd"}))
    plain, labelled = node(), node(labels={"disk": "ssd"})
    assert plugin.wakes(waiting, ClusterEvent(Happened.NODE_LABELS, plain, labelled))
    assert not plugin.wakes(waiting, ClusterEvent(Happened.NODE_LABELS, labelled, labelled))
    assert not plugin.wakes(waiting, ClusterEvent(Happened.NODE_ADDED, None, plain))
