"""Pods and the volumes they claim: where they can go, why they wait, and what is told to the API before they go."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from kone.apimachinery.kinds import (
    CSIDRIVERS,
    CSINODES,
    CSISTORAGECAPACITIES,
    EVENTS,
    NODES,
    PERSISTENTVOLUMECLAIMS,
    PERSISTENTVOLUMES,
    PODS,
    STORAGECLASSES,
    VOLUMEATTACHMENTS,
)
from kone.apimachinery.objects import Key, Object, annotations_of, dig, find_condition, is_deleting, replace_in
from kone.apimachinery.volume_claims import BIND_COMPLETED, BOUND_BY_CONTROLLER, SELECTED_NODE
from kone.scheduler.framework import Framework, Placement
from kone.scheduler.plugins.volume_binding import TIMEOUT_S, VolumeBinding
from kone.scheduler.pod_info import PodInfo
from tests.scheduler.support import Scheduling, node, pod
from tests.scheduler.support import World as PlainWorld


def claim(name: str = "data", *, on: str = "", size: str = "1Gi", class_name: str = "late", **spec: Any) -> Object:
    meta: Object = {"name": name, "namespace": "ns", "uid": f"uid-{name}"}
    spec = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": size}},
        "storageClassName": class_name,
        **spec,
    }
    if on:
        meta["annotations"] = {BIND_COMPLETED: "yes"}
        spec["volumeName"] = on
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": spec, "status": {}}


def volume(name: str, *, node_name: str = "", size: str = "1Gi", class_name: str = "late", **spec: Any) -> Object:
    spec = {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": size}, "storageClassName": class_name, **spec}
    if node_name:
        wanted = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node_name]}
        spec["nodeAffinity"] = {"required": {"nodeSelectorTerms": [{"matchExpressions": [wanted]}]}}
    meta = {"name": name, "uid": f"uid-{name}"}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": meta,
        "spec": spec,
        "status": {"phase": "Available"},
    }


def storage_class(
    name: str = "late", provisioner: str = "kubernetes.io/no-provisioner", mode: str = "WaitForFirstConsumer"
) -> Object:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": name},
        "provisioner": provisioner,
        "volumeBindingMode": mode,
    }


class World(Scheduling):
    def __init__(self) -> None:
        super().__init__()
        self.client.put(STORAGECLASSES, storage_class())

    def put(self, *objects: Object) -> None:
        kinds = {
            "Node": NODES,
            "PersistentVolumeClaim": PERSISTENTVOLUMECLAIMS,
            "PersistentVolume": PERSISTENTVOLUMES,
            "CSINode": CSINODES,
            "CSIDriver": CSIDRIVERS,
            "CSIStorageCapacity": CSISTORAGECAPACITIES,
            "VolumeAttachment": VOLUMEATTACHMENTS,
        }
        for obj in objects:
            self.client.put(kinds[obj["kind"]], obj)

    def pod(self, name: str = "p", claims: tuple[str, ...] = ("data",), **spec: Any) -> Object:
        volumes = [{"name": c, "persistentVolumeClaim": {"claimName": c}} for c in claims]
        return self.client.put(PODS, pod(name, volumes=volumes, **spec))

    def claim(self, name: str = "data") -> Object:
        return self.client.look(PERSISTENTVOLUMECLAIMS, claim(name))

    def volume(self, name: str) -> Object:
        return self.client.look(PERSISTENTVOLUMES, volume(name))

    def bind(self, name: str, to: str) -> None:
        """What the volume controller does in the end."""
        made = replace_in(self.claim(name), ("spec", "volumeName"), to)
        annotations = {**annotations_of(made), BIND_COMPLETED: "yes"}
        self.client.overwrite(PERSISTENTVOLUMECLAIMS, replace_in(made, ("metadata", "annotations"), annotations))


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    await made.stop()


async def test_a_claim_that_is_not_there_keeps_the_pod_until_it_is(world: World) -> None:
    world.put(node("n1"), volume("v", class_name="slow"))
    await world.scheduler.start()
    made = world.pod()
    await world.settle()
    assert world.why(made) == '0/1 nodes are available: persistentvolumeclaim "data" not found. not found'
    world.put(claim(on="v", class_name="slow"))
    await world.settle()
    assert world.where(made) == "n1"


async def test_claims_that_are_bound_at_once_are_waited_for(world: World) -> None:
    world.put(node("n1"), volume("v"), claim(class_name=""))
    await world.scheduler.start()
    made = world.pod()
    await world.settle()
    assert world.why(made) == "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims. not found"
    world.bind("data", "v")
    await world.settle()
    assert world.where(made) == "n1"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            {"status": {"phase": "Lost"}},
            'persistentvolumeclaim "data" bound to non-existent persistentvolume "v"',
        ),
        (
            {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["kubernetes.io/pvc-protection"]}},
            'persistentvolumeclaim "data" is being deleted',
        ),
    ],
)
async def test_a_claim_of_no_use(world: World, change: Object, why: str) -> None:
    useless = claim(on="v")
    world.put(node("n1"), {**useless, **change, "metadata": {**useless["metadata"], **change.get("metadata", {})}})
    await world.scheduler.start()
    made = world.pod()
    await world.settle()
    assert world.why(made) == f"0/1 nodes are available: {why}. not found"


async def test_an_ephemeral_volume_needs_its_own_claim(world: World) -> None:
    world.put(node("n1"))
    await world.scheduler.start()
    made = world.client.put(PODS, pod("p", volumes=[{"name": "tmp", "ephemeral": {}}]))
    await world.settle()
    waiting = 'waiting for ephemeral volume controller to create the persistentvolumeclaim "p-tmp"'
    assert world.why(made) == f"0/1 nodes are available: {waiting}. not found"
    world.put(claim("p-tmp"))
    await world.settle()
    stranger = "PVC ns/p-tmp was not created for pod ns/p (pod is not owner)"
    assert world.why(made) == f"0/1 nodes are available: {stranger}. not found"


async def test_a_pod_goes_where_its_volume_is(world: World) -> None:
    world.put(node("n1"), node("n2"), volume("v", node_name="n2"), claim(on="v"))
    await world.scheduler.start()
    made = world.pod()
    await world.settle()
    assert world.where(made) == "n2"


async def test_a_volume_out_of_reach_or_gone(world: World) -> None:
    world.put(node("n1"), volume("v", node_name="n2"), claim("far", on="v"), claim("lost", on="w"))
    await world.scheduler.start()
    far, lost = world.pod("a", ("far",)), world.pod("b", ("lost",))
    await world.settle()
    assert "1 node(s) didn't match PersistentVolume's node affinity." in world.why(far)
    assert world.why(lost).startswith('0/1 nodes are available: persistentvolume "w" not found.')


async def test_the_first_consumer_gets_the_smallest_volume_of_its_node(world: World) -> None:
    world.put(node("n1"), node("n2"), claim(size="2Gi"))
    world.put(volume("small", node_name="n2"), volume("big", node_name="n2", size="9Gi"))
    world.put(volume("fit", node_name="n2", size="2Gi"))
    await world.scheduler.start()
    made = world.pod()
    await world.settle()
    ref = world.volume("fit")["spec"]["claimRef"]
    assert (ref["kind"], ref["namespace"], ref["name"], ref["uid"]) == (
        "PersistentVolumeClaim",
        "ns",
        "data",
        "uid-data",
    )
    assert annotations_of(world.volume("fit")) == {BOUND_BY_CONTROLLER: "yes"}
    assert world.where(made) == ""  # until the claim is bound
    world.bind("data", "fit")
    await world.settle()
    assert world.where(made) == "n2"


async def test_two_pods_at_once_do_not_get_the_same_volume(world: World) -> None:
    world.put(node("n1"), claim("a"), claim("b"), volume("v"), volume("w"))
    await world.scheduler.start()
    world.pod("p", ("a",))
    world.pod("q", ("b",))
    await world.settle()
    owners = {world.volume(name)["spec"]["claimRef"]["name"] for name in ("v", "w")}
    assert owners == {"a", "b"}


async def test_without_a_volume_the_pod_waits_for_one(world: World) -> None:
    world.put(node("n1"), claim())
    await world.scheduler.start()
    made = world.pod()
    await world.settle()
    assert "1 node(s) didn't find available persistent volumes to bind." in world.why(made)
    world.put(volume("v"))
    await world.settle()
    assert dig(world.volume("v"), "spec", "claimRef", "name") == "data"


async def test_the_provisioner_is_told_the_node(world: World) -> None:
    world.client.put(STORAGECLASSES, storage_class("local", "example.com/local"))
    world.put(node("n1"), claim(class_name="local"))
    await world.scheduler.start()
    made = world.pod()
    await world.settle()
    assert annotations_of(world.claim())[SELECTED_NODE] == "n1"
    world.put(volume("v", node_name="n1", class_name="local"))
    world.bind("data", "v")
    await world.settle()
    assert world.where(made) == "n1"


def capacity(name: str, node_name: str, size: str | None, **more: Any) -> Object:
    """What driver d says of the class "made" on a node."""
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "CSIStorageCapacity",
        "metadata": {"name": name, "namespace": "ns"},
        "storageClassName": "made",
        "nodeTopology": {"matchLabels": {"kubernetes.io/hostname": node_name}},
        **({"capacity": size} if size is not None else {}),
        **more,
    }


@pytest.mark.parametrize("tells", [True, False], ids=["a driver that tells", "a driver that does not"])
async def test_a_pod_goes_where_its_driver_has_room(world: World, tells: bool) -> None:
    world.client.put(STORAGECLASSES, storage_class("made", "d"))
    driver = {"metadata": {"name": "d"}, "spec": {"storageCapacity": tells}}
    world.put({"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", **driver}, node("n1"), claim(class_name="made"))
    world.put(capacity("small", "n1", "500Mi"), capacity("elsewhere", "n2", "5Gi"), capacity("unknown", "n1", None))
    world.put(capacity("many-small-ones", "n1", "5Gi", maximumVolumeSize="1Mi"))
    await world.scheduler.start()
    made = world.pod()
    await world.settle()
    if not tells:
        assert annotations_of(world.claim())[SELECTED_NODE] == "n1"
        return
    why = "0/1 nodes are available: 1 node(s) did not have enough free storage."
    assert world.why(made).startswith(why)
    world.put(capacity("more", "n1", "1Gi"))
    await world.settle()
    assert annotations_of(world.claim())[SELECTED_NODE] == "n1"


async def test_of_nodes_with_room_that_with_the_most_is_taken_and_told_of_at_once(world: World) -> None:
    world.client.put(STORAGECLASSES, storage_class("made", "d"))
    driver = {"metadata": {"name": "d"}, "spec": {"storageCapacity": True}}
    world.put({"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", **driver}, claim(class_name="made"))
    world.put(node("n1"), node("n2"), node("n3"))
    world.put(capacity("a", "n1", "2Gi"), capacity("b", "n2", "90Gi"), capacity("c", "n3", "1Gi"))
    await world.scheduler.start()
    made = world.pod()
    await world.settle()
    assert annotations_of(world.claim())[SELECTED_NODE] == "n2"
    assert world.where(made) == ""
    assert dig(world.client.look(PODS, made), "status", "nominatedNodeName") == "n2"
    await world.clock.advance(TIMEOUT_S + 1)
    await world.settle()
    assert "context deadline exceeded" in str(world.client.of(EVENTS))


@pytest.mark.parametrize(
    ("sizes", "better"),
    [
        pytest.param(("1Gi", "4Gi"), "n1", id="the volume that is just large enough"),
        pytest.param(("8Gi", "4Gi"), "n2", id="the smaller of two"),
    ],
)
def test_of_volumes_the_fuller_one_is_better_where_the_shape_says_so(sizes: tuple[str, str], better: str) -> None:
    world = PlainWorld(node("n1"), node("n2"))
    full = {"shape": [{"utilization": 0, "score": 0}, {"utilization": 100, "score": 10}]}
    plugins = [VolumeBinding(world.cluster, full)]
    framework = Framework(world.cluster, plugins, world.nominator)
    world.cluster.storage_classes["late"] = storage_class()
    world.cluster.claims[Key("ns", "data")] = claim()
    for name, on, size in zip("ab", ("n1", "n2"), sizes, strict=True):
        world.cluster.volumes[name] = volume(name, node_name=on, size=size)
    found = framework.place(PodInfo(pod(volumes=[{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}])))
    assert isinstance(found, Placement)
    assert found.node.name == better


async def test_a_provisioner_that_fails_takes_the_node_back(world: World) -> None:
    world.client.put(STORAGECLASSES, storage_class("local", "example.com/local"))
    world.put(node("n1"), claim(class_name="local"))
    await world.scheduler.start()
    made = world.pod()
    await world.settle()
    world.client.overwrite(PERSISTENTVOLUMECLAIMS, replace_in(world.claim(), ("metadata", "annotations"), {}))
    await world.settle()
    assert world.why(made) == (
        'running PreBind plugin "VolumeBinding": binding volumes: provisioning failed for PVC "data"'
    )
    await world.clock.advance(2)
    assert annotations_of(world.claim())[SELECTED_NODE] == "n1"  # tried again


async def test_binding_that_takes_too_long_is_given_up(world: World) -> None:
    world.put(node("n1"), claim(), volume("v"))
    await world.scheduler.start()
    made = world.pod()
    await world.settle()
    await world.clock.advance(TIMEOUT_S)
    assert world.why(made).endswith("binding volumes: context deadline exceeded")


async def test_a_claim_for_one_pod_only(world: World) -> None:
    world.put(node("n1"), node("n2"), volume("v", accessModes=["ReadWriteOncePod"]))
    world.put(claim(on="v", accessModes=["ReadWriteOncePod"]))
    await world.scheduler.start()
    first = world.pod("a")
    await world.settle()
    second = world.pod("b")
    await world.settle()
    assert world.where(first)
    assert (
        "2 node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode."
        in world.why(second)
    )
    await world.client.delete(PODS, "a", namespace="ns", grace_s=0)
    await world.settle()
    assert world.where(second)


def csi_volume(name: str, driver: str = "csi.example", **more: Any) -> Object:
    return volume(name, csi={"driver": driver, "volumeHandle": f"handle-{name}"}, **more)


def csi_node(name: str = "n1", driver: str = "csi.example", count: int = 2) -> Object:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "CSINode",
        "metadata": {"name": name},
        "spec": {"drivers": [{"name": driver, "nodeID": name, "allocatable": {"count": count}}]},
    }


async def test_a_node_takes_as_many_volumes_as_its_driver_says(world: World) -> None:
    names = ("a", "b", "c")
    world.put(node("n1"), csi_node(), *(csi_volume(name) for name in names), *(claim(name, on=name) for name in names))
    await world.scheduler.start()
    two, again, third = world.pod("p1", ("a", "b")), world.pod("p2", ("b",)), world.pod("p3", ("c",))
    await world.settle()
    assert (world.where(two), world.where(again)) == ("n1", "n1")
    assert "1 node(s) exceed max volume count." in world.why(third)
    world.client.overwrite(CSINODES, csi_node(count=3))
    await world.settle()
    assert world.where(third) == "n1"


async def test_what_is_still_attached_counts_until_it_is_detached(world: World) -> None:
    attachment = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "VolumeAttachment",
        "metadata": {"name": "left"},
        "spec": {"attacher": "csi.example", "nodeName": "n1", "source": {"persistentVolumeName": "a"}},
    }
    world.put(node("n1"), csi_node(count=1), csi_volume("a"), csi_volume("b"), claim("b", on="b"), attachment)
    await world.scheduler.start()
    made = world.pod("p", ("b",))
    await world.settle()
    assert "1 node(s) exceed max volume count." in world.why(made)
    await world.client.delete(VOLUMEATTACHMENTS, "left")
    await world.settle()
    assert world.where(made) == "n1"


async def test_a_driver_that_must_be_there_keeps_pods_from_nodes_without_it(world: World) -> None:
    driver = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "CSIDriver",
        "metadata": {"name": "csi.example"},
        "spec": {"preventPodSchedulingIfMissing": True},
    }
    world.put(node("n1"), driver, csi_volume("a"), claim("a", on="a"))
    await world.scheduler.start()
    made = world.pod("p", ("a",))
    await world.settle()
    assert "1 csi.example CSI driver is not installed on the node." in world.why(made)
    world.put(csi_node())
    await world.settle()
    assert world.where(made) == "n1"


@pytest.mark.parametrize(
    ("zone", "node_labels", "fits"),
    [
        pytest.param("a", {"topology.kubernetes.io/zone": "a"}, True, id="same zone"),
        pytest.param("a__b", {"topology.kubernetes.io/zone": "b"}, True, id="one of two zones"),
        pytest.param("a", {"failure-domain.beta.kubernetes.io/zone": "a"}, True, id="the node's older label"),
        pytest.param("a", {"topology.kubernetes.io/zone": "b"}, False, id="another zone"),
        pytest.param("a", {"topology.kubernetes.io/region": "r"}, False, id="a node of no zone but a region"),
        pytest.param("a", {}, True, id="a node of neither takes all"),
    ],
)
async def test_a_labelled_volume_keeps_pods_in_its_zone(
    world: World, zone: str, node_labels: dict[str, str], fits: bool
) -> None:
    made = volume("v")
    made["metadata"]["labels"] = {"topology.kubernetes.io/zone": zone}
    world.put(node("n1", labels=node_labels), made, claim("c", on="v"))
    await world.scheduler.start()
    wanting = world.pod("p", ("c",))
    await world.settle()
    if fits:
        assert world.where(wanting) == "n1"
    else:
        assert "1 node(s) had no available volume zone." in world.why(wanting)


def _disk(kind: str, **more: Any) -> Object:
    return {"name": "d", kind: more}


@pytest.mark.parametrize(
    ("there", "wanted", "fits"),
    [
        (_disk("gcePersistentDisk", pdName="x"), _disk("gcePersistentDisk", pdName="x"), False),
        (
            _disk("gcePersistentDisk", pdName="x", readOnly=True),
            _disk("gcePersistentDisk", pdName="x", readOnly=True),
            True,
        ),
        (
            _disk("awsElasticBlockStore", volumeID="x"),
            _disk("awsElasticBlockStore", volumeID="x", readOnly=True),
            False,
        ),
        (_disk("iscsi", iqn="x", readOnly=True), _disk("iscsi", iqn="x"), False),
        (_disk("iscsi", iqn="x"), _disk("iscsi", iqn="y"), True),
        (_disk("rbd", image="x", monitors=["a", "b"]), _disk("rbd", image="x", monitors=["b"]), False),
        (_disk("rbd", image="x", monitors=["a"]), _disk("rbd", image="x", monitors=["b"]), True),
    ],
)
def test_a_disk_serves_one_pod_of_a_node(there: Object, wanted: Object, fits: bool) -> None:
    plain = PlainWorld(node("n1")).run(pod("a", on="n1", volumes=[there]))
    answer = plain.place(pod("b", volumes=[wanted]))
    assert answer == ("n1" if fits else "0/1 nodes are available: 1 node(s) had no available disk.")


async def test_a_more_important_pod_takes_a_claim_for_one_pod_from_another(world: World) -> None:
    world.put(node("n1"), node("n2"), volume("v"), claim(on="v", accessModes=["ReadWriteOncePod"]))
    await world.scheduler.start()
    holder = world.pod("holder", priority=1)
    await world.settle()
    where = world.where(holder)
    vip = world.pod("vip", priority=100)
    await world.settle()
    leaving = world.client.look(PODS, holder)
    assert (find_condition(leaving, "DisruptionTarget") or {}).get("reason") == "PreemptionByScheduler"
    assert is_deleting(leaving)
    await world.client.delete(PODS, "holder", namespace="ns", grace_s=0)
    await world.settle()
    assert world.where(vip) == where
