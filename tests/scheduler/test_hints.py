"""Queueing hints: which news gives a pod that a plugin refused another try, and which does not."""

from __future__ import annotations

from typing import Any

import pytest

from kone.apimachinery.objects import Object, replace_in
from kone.scheduler.framework import ClusterEvent, Happened
from kone.scheduler.plugins import DEFAULT
from kone.scheduler.pod_info import PodInfo
from tests.scheduler.support import World, node, pod
from tests.scheduler.test_devices import claim as device_claim
from tests.scheduler.test_devices import device_class, wish
from tests.scheduler.test_volumes import claim, storage_class, volume

H = Happened
GONE = None
TAINT = {"key": "k", "effect": "NoSchedule"}
TOLERATES = [{"key": "k", "operator": "Exists"}]
RULE = {"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [1]}}
ZONE = {"zone": "a"}


def spread(**labels: str) -> Object:
    constraint = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
    constraint |= {"labelSelector": {"matchLabels": {"app": "x"}}}
    return pod(labels={"app": "x"}, topologySpreadConstraints=[constraint])


def near(kind: str) -> Object:
    term = {"labelSelector": {"matchLabels": {"app": "x"}}, "topologyKey": "zone"}
    return pod(affinity={kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}})


def claiming(**more: Any) -> Object:
    return pod(volumes=[{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}], **more)


def devices() -> Object:
    return pod(resourceClaims=[{"name": "d", "resourceClaimName": "c"}])


def allocated(found: Object) -> Object:
    return {**found, "status": {"allocation": {"devices": {"results": []}}}}


def csi_node(count: int) -> Object:
    driver = {"name": "d", "nodeID": "n1", "allocatable": {"count": count}}
    return {"metadata": {"name": "n1"}, "spec": {"drivers": [driver]}}


def driver(tells: bool) -> Object:
    return {"metadata": {"name": "d"}, "spec": {"storageCapacity": tells}}


def room(size: str) -> Object:
    return {"metadata": {"name": "c", "namespace": "ns"}, "storageClassName": "late", "capacity": size}


def ports(number: int, **more: Any) -> Object:
    return pod(containers=[{"name": "c", "ports": [{"containerPort": 80, "hostPort": number}]}], **more)


def of_class(extended: str) -> Object:
    return device_class("gpus", extendedResourceName=extended)


OTHER = pod("other", labels={"app": "x"}, on="n1")
STRANGER = pod("stranger", labels={"app": "y"}, on="n1")
ASKS_GPU = pod(requests={"example.com/gpu": "1"})
ROWS: list[tuple[str, Object, Happened, Object | None, Object | None, bool]] = [
    # plugin, waiting pod, what happened, before, after, does it wake
    ("SchedulingGates", pod(), H.SELF_GATES, pod(), pod(), True),
    ("NodeName", pod(), H.NODE_ADDED, None, node(), True),
    ("NodeUnschedulable", pod(), H.NODE_TAINTS, node(unschedulable=True), node(), True),
    ("NodeUnschedulable", pod(), H.NODE_ADDED, None, node(unschedulable=True), False),
    ("TaintToleration", pod(), H.NODE_TAINTS, node(taints=[TAINT]), node(), True),
    ("TaintToleration", pod(), H.NODE_TAINTS, node(), node(taints=[TAINT]), False),
    ("TaintToleration", pod(), H.NODE_ADDED, None, node(taints=[TAINT]), False),
    ("TaintToleration", pod(tolerations=TOLERATES), H.SELF_TOLERATIONS, pod(), pod(tolerations=TOLERATES), True),
    ("NodeAffinity", pod(nodeSelector=ZONE), H.NODE_LABELS, node(), node(labels=ZONE), True),
    ("NodeAffinity", pod(nodeSelector=ZONE), H.NODE_LABELS, node(), node(labels={"zone": "b"}), False),
    ("NodeAffinity", pod(nodeSelector=ZONE), H.NODE_ADDED, None, node(labels=ZONE), True),
    ("NodePorts", ports(80), H.POD_GONE, ports(80, on="n1"), GONE, True),
    ("NodePorts", ports(80), H.POD_GONE, ports(81, on="n1"), GONE, False),
    ("NodePorts", ports(80), H.NODE_ADDED, None, node(), True),
    ("NodeResourcesFit", pod(requests={"cpu": "2"}), H.NODE_ADDED, None, node(cpu="2"), True),
    ("NodeResourcesFit", pod(requests={"cpu": "2"}), H.NODE_ALLOCATABLE, node(cpu="0"), node(cpu="1"), False),
    ("NodeResourcesFit", pod(requests={"cpu": "2"}), H.POD_GONE, OTHER, GONE, True),
    ("NodeResourcesFit", pod(requests={"cpu": "2"}), H.POD_SCALED_DOWN, OTHER, OTHER, True),
    (
        "NodeResourcesFit",
        ASKS_GPU,
        H.DEVICE_CLASS,
        None,
        of_class("example.com/gpu"),
        True,
    ),
    (
        "NodeResourcesFit",
        ASKS_GPU,
        H.DEVICE_CLASS,
        None,
        of_class("example.com/b"),
        False,
    ),
    (
        "NodeResourcesFit",
        pod(requests={"deviceclass.resource.kubernetes.io/gpus": "1"}),
        H.DEVICE_CLASS,
        None,
        device_class("gpus"),
        True,
    ),
    ("VolumeRestrictions", claiming(), H.POD_GONE, claiming(on="n1"), GONE, True),
    ("VolumeRestrictions", claiming(), H.POD_GONE, OTHER, GONE, False),
    ("VolumeRestrictions", claiming(), H.CLAIM, None, claim(), True),
    ("NodeVolumeLimits", claiming(), H.POD_GONE, claiming(on="n1"), GONE, True),
    ("NodeVolumeLimits", claiming(), H.POD_GONE, OTHER, GONE, False),
    ("NodeVolumeLimits", claiming(), H.CSI_NODE, csi_node(1), csi_node(2), True),
    ("NodeVolumeLimits", claiming(), H.CSI_NODE, csi_node(2), csi_node(1), False),
    ("NodeVolumeLimits", claiming(), H.CLAIM, None, claim("another"), False),
    ("VolumeBinding", claiming(), H.CLAIM, None, claim(), True),
    ("VolumeBinding", claiming(), H.CLAIM, None, claim("another"), False),
    ("VolumeBinding", claiming(), H.VOLUME, None, volume("v"), True),
    ("VolumeBinding", claiming(), H.STORAGE_CLASS, None, storage_class(), True),
    ("VolumeBinding", claiming(), H.STORAGE_CLASS, storage_class(), storage_class(), False),
    ("VolumeBinding", claiming(), H.CSI_DRIVER, driver(True), driver(False), True),
    ("VolumeBinding", claiming(), H.CSI_DRIVER, driver(False), driver(True), False),
    ("VolumeBinding", claiming(), H.STORAGE_CAPACITY, room("1Gi"), room("2Gi"), True),
    ("VolumeBinding", claiming(), H.STORAGE_CAPACITY, room("2Gi"), room("1Gi"), False),
    ("VolumeBinding", claiming(), H.NODE_LABELS, node(), node(labels=ZONE), True),
    ("VolumeZone", claiming(), H.CLAIM, None, claim(), True),
    ("VolumeZone", claiming(), H.CLAIM, None, claim("another"), False),
    ("VolumeZone", claiming(), H.VOLUME, volume("v"), volume("v"), False),
    ("VolumeZone", claiming(), H.STORAGE_CLASS, None, storage_class(), True),
    ("PodTopologySpread", spread(), H.POD_ADDED, None, OTHER, True),
    ("PodTopologySpread", spread(), H.POD_ADDED, None, STRANGER, False),
    ("PodTopologySpread", spread(), H.POD_GONE, OTHER, GONE, True),
    ("PodTopologySpread", spread(), H.NODE_ADDED, None, node(labels=ZONE), True),
    ("PodTopologySpread", spread(), H.NODE_ADDED, None, node(), False),
    ("PodTopologySpread", spread(), H.NODE_LABELS, node(labels=ZONE), node(labels={"zone": "b"}), True),
    ("PodTopologySpread", spread(), H.NODE_LABELS, node(labels=ZONE), node(labels={**ZONE, "x": "y"}), False),
    ("PodTopologySpread", spread(), H.NODE_TAINTS, node(labels=ZONE, taints=[TAINT]), node(labels=ZONE), True),
    ("PodTopologySpread", spread(), H.NODE_GONE, node(labels=ZONE), GONE, True),
    ("PodTopologySpread", spread(), H.NODE_GONE, node(), GONE, False),
    ("InterPodAffinity", near("podAffinity"), H.POD_ADDED, None, OTHER, True),
    ("InterPodAffinity", near("podAffinity"), H.POD_ADDED, None, STRANGER, False),
    ("InterPodAffinity", near("podAntiAffinity"), H.POD_GONE, OTHER, GONE, True),
    ("InterPodAffinity", near("podAntiAffinity"), H.POD_GONE, STRANGER, GONE, False),
    ("InterPodAffinity", near("podAffinity"), H.NODE_LABELS, node(), node(labels=ZONE), True),
    ("DynamicResources", devices(), H.RESOURCE_CLAIM, None, device_claim(wish()), True),
    ("DynamicResources", devices(), H.RESOURCE_CLAIM, None, device_claim(wish(), name="another"), False),
    (
        "DynamicResources",
        devices(),
        H.RESOURCE_CLAIM,
        allocated(device_claim(wish(), name="another")),
        device_claim(wish(), name="another"),
        True,
    ),
    ("DynamicResources", devices(), H.RESOURCE_CLAIM, device_claim(wish()), device_claim(wish()), False),
    ("DynamicResources", devices(), H.DEVICE_CLASS, None, device_class("gpus"), True),
    ("DynamicResources", pod(), H.DEVICE_CLASS, None, device_class("gpus"), False),
    ("NodeDeclaredFeatures", pod(), H.NODE_FEATURES, node(), replace_in(node(), ("status", "x"), 1), True),
]


@pytest.mark.parametrize(
    ("plugin", "waiting", "what", "old", "new", "wakes"),
    [pytest.param(*row, id=f"{row[0]}-{(row[2].name or '').lower()}-{i}") for i, row in enumerate(ROWS)],
)
def test_news_wakes(
    plugin: str, waiting: Object, what: Happened, old: Object | None, new: Object | None, wakes: bool
) -> None:
    world = World(node("n1", labels=ZONE))
    world.cluster.resource_claims |= {("ns", "c"): device_claim(wish())}  # type: ignore[dict-item]
    found = world.framework.by_name[plugin]
    heard = bool(found.wakes_on & what) and found.wakes(PodInfo(waiting), ClusterEvent(what, old, new))
    assert heard is wakes


def test_every_plugin_that_can_refuse_says_what_wakes() -> None:
    refusing = [plugin for plugin in DEFAULT if plugin.has_any(["pre_enqueue", "pre_filter", "filter"])]
    assert {plugin.name for plugin in refusing if plugin.name not in {row[0] for row in ROWS}} == {"DefaultPreemption"}
    assert all(plugin.wakes_on for plugin in refusing if plugin.name != "DefaultPreemption")
