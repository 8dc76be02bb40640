"""Claims and volumes: bound in all ways, lost, released, reclaimed; provisioners asked."""

from pathlib import Path

import pytest

from kone.apimachinery.kinds import PERSISTENTVOLUMECLAIMS, PERSISTENTVOLUMES, PODS, STORAGECLASSES
from kone.apimachinery.objects import Object, annotations_of, dig, name_of, replace_in, uid_of
from kone.controllers.persistent_volumes import PERSISTENT_VOLUME_BINDER
from kone.controllers.volume_rules import (
    best_match,
    bound_volume,
    claim_status,
    mismatch,
    plan_reclaim,
    plan_volume,
    unbound_volume,
)
from tests.controllers.world import World
from tests.fakes import ready_pod

BY_CONTROLLER = {"pv.kubernetes.io/bound-by-controller": "yes"}


def volume(name: str = "v", size: str = "1Gi", modes: tuple[str, ...] = ("ReadWriteOnce",), **spec: object) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": size},
            "accessModes": list(modes),
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "slow",
            "hostPath": {"path": "/srv/x"},
            **spec,
        },
        "status": {"phase": "Pending"},
    }


def claim(name: str = "c", size: str = "1Gi", modes: tuple[str, ...] = ("ReadWriteOnce",), **spec: object) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "accessModes": list(modes),
            "storageClassName": "slow",
            "resources": {"requests": {"storage": size}},
            **spec,
        },
        "status": {"phase": "Pending"},
    }


def storage_class(name: str = "slow", provisioner: str = "example.com/disk", **more: object) -> Object:
    meta = {"name": name, **more.pop("metadata", {})}  # type: ignore[dict-item]
    return {"kind": "StorageClass", "metadata": meta, "provisioner": provisioner, **more}


def phases(world: World) -> dict[str, str]:
    objects = [*world.client.of(PERSISTENTVOLUMES), *world.client.of(PERSISTENTVOLUMECLAIMS)]
    return {name_of(obj): obj["status"]["phase"] for obj in objects}


async def test_a_claim_and_a_volume_find_each_other(world: World) -> None:
    async with world.running(PERSISTENT_VOLUME_BINDER):
        pv = await world.put(PERSISTENTVOLUMES, volume())
        assert phases(world) == {"v": "Available"}
        pvc = await world.put(PERSISTENTVOLUMECLAIMS, claim())
        pv, pvc = world.client.look(PERSISTENTVOLUMES, pv), world.client.look(PERSISTENTVOLUMECLAIMS, pvc)
        reference = pv["spec"]["claimRef"]
        assert (reference["namespace"], reference["name"], reference["uid"]) == ("shop", "c", uid_of(pvc))
        assert annotations_of(pv) == BY_CONTROLLER
        assert annotations_of(pvc) == {**BY_CONTROLLER, "pv.kubernetes.io/bind-completed": "yes"}
        assert pvc["spec"]["volumeName"] == "v"
        assert pvc["status"] == {"phase": "Bound", "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}}
        assert phases(world) == {"v": "Bound", "c": "Bound"}


async def test_a_claim_waits_for_a_volume_that_suits_it(world: World) -> None:
    async with world.running(PERSISTENT_VOLUME_BINDER):
        await world.put(PERSISTENTVOLUMECLAIMS, claim(size="5Gi"))
        await world.put(PERSISTENTVOLUMES, volume("small"))
        assert phases(world)["c"] == "Pending"
        await world.put(PERSISTENTVOLUMES, volume("large", "9Gi"))
        assert phases(world) == {"small": "Available", "large": "Bound", "c": "Bound"}


async def test_two_claims_get_two_volumes(world: World) -> None:
    async with world.running(PERSISTENT_VOLUME_BINDER):
        for name in ("c1", "c2", "c3"):
            await world.put(PERSISTENTVOLUMECLAIMS, claim(name))
        for name in ("v1", "v2"):
            await world.put(PERSISTENTVOLUMES, volume(name))
        assert sorted(phases(world).values()) == ["Bound", "Bound", "Bound", "Bound", "Pending"]


async def test_a_volume_promised_to_a_claim_is_kept_for_it(world: World) -> None:
    async with world.running(PERSISTENT_VOLUME_BINDER):
        promised = volume("v", claimRef={"namespace": "shop", "name": "later"})
        pv = await world.put(PERSISTENTVOLUMES, promised)
        await world.put(PERSISTENTVOLUMECLAIMS, claim("sooner"))
        assert phases(world) == {"v": "Available", "sooner": "Pending"}
        await world.put(PERSISTENTVOLUMECLAIMS, claim("later"))
        assert phases(world) == {"v": "Bound", "sooner": "Pending", "later": "Bound"}
        assert annotations_of(world.client.look(PERSISTENTVOLUMES, pv)) == {}, "the user chose"


async def test_a_claim_may_name_its_volume(world: World) -> None:
    async with world.running(PERSISTENT_VOLUME_BINDER):
        pvc = await world.put(PERSISTENTVOLUMECLAIMS, claim(volumeName="v"))
        assert phases(world) == {"c": "Pending"}
        await world.put(PERSISTENTVOLUMES, volume())
        assert phases(world) == {"v": "Bound", "c": "Bound"}
        found = annotations_of(world.client.look(PERSISTENTVOLUMECLAIMS, pvc))
        assert found == {"pv.kubernetes.io/bind-completed": "yes"}


async def test_a_named_volume_that_does_not_suit_is_told_of(world: World) -> None:
    async with world.running(PERSISTENT_VOLUME_BINDER):
        await world.put(PERSISTENTVOLUMES, volume())
        await world.put(PERSISTENTVOLUMECLAIMS, claim(volumeName="v", size="2Gi"))
        message = 'Cannot bind to requested volume "v": requested PV is too small'
        assert await world.events() == [("Warning", "VolumeMismatch", message)]
        await world.put(PERSISTENTVOLUMECLAIMS, claim("taker"))
        await world.put(PERSISTENTVOLUMECLAIMS, claim("late", volumeName="v"))
        assert ("Warning", "FailedBinding", 'volume "v" already bound to a different claim.') in await world.events()


async def test_a_bound_claim_whose_volume_goes_is_lost(world: World) -> None:
    async with world.running(PERSISTENT_VOLUME_BINDER):
        await world.put(PERSISTENTVOLUMES, volume())
        pvc = await world.put(PERSISTENTVOLUMECLAIMS, claim())
        await world.client.delete(PERSISTENTVOLUMES, "v")
        await world.settle()
        assert world.client.look(PERSISTENTVOLUMECLAIMS, pvc)["status"] == {"phase": "Lost"}
        message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!"
        assert await world.events("ClaimLost") == [("Warning", "ClaimLost", message)]


async def test_a_released_volume_is_kept_until_the_user_gives_it_free(world: World) -> None:
    async with world.running(PERSISTENT_VOLUME_BINDER):
        pv = await world.put(PERSISTENTVOLUMES, volume())
        await world.put(PERSISTENTVOLUMECLAIMS, claim())
        await world.client.delete(PERSISTENTVOLUMECLAIMS, "c", namespace="shop")
        await world.settle()
        await world.put(PERSISTENTVOLUMECLAIMS, claim("d"))
        assert phases(world) == {"v": "Released", "d": "Pending"}
        message = 'storageclass.storage.k8s.io "slow" not found'
        assert ("Warning", "ProvisioningFailed", message) in await world.events()
        await world.edit(PERSISTENTVOLUMES, pv, "spec", "claimRef", value=None)
        assert phases(world) == {"v": "Bound", "d": "Bound"}


async def test_another_claim_of_the_same_name_does_not_get_the_volume(world: World) -> None:
    async with world.running(PERSISTENT_VOLUME_BINDER):
        await world.put(PERSISTENTVOLUMES, volume())
        await world.put(PERSISTENTVOLUMECLAIMS, claim())
        await world.client.delete(PERSISTENTVOLUMECLAIMS, "c", namespace="shop")
        await world.put(PERSISTENTVOLUMECLAIMS, claim())
        assert phases(world) == {"v": "Released", "c": "Pending"}


# Reclaiming


async def test_a_directory_under_tmp_is_removed_with_its_volume(world: World, tmp_path: Path) -> None:
    place = tmp_path / "data"
    place.mkdir()
    (place / "file").write_text("x")
    deletable = volume(persistentVolumeReclaimPolicy="Delete", hostPath={"path": str(place)})
    async with world.running(PERSISTENT_VOLUME_BINDER):
        await world.put(PERSISTENTVOLUMES, deletable)
        await world.put(PERSISTENTVOLUMECLAIMS, claim())
        await world.client.delete(PERSISTENTVOLUMECLAIMS, "c", namespace="shop")
        while world.client.of(PERSISTENTVOLUMES):
            await world.settle()
        assert not place.exists()


@pytest.mark.parametrize(
    ("spec", "annotations", "reason", "message"),
    [
        ({"persistentVolumeReclaimPolicy": "Retain"}, {}, None, ""),
        ({"csi": {"driver": "x"}}, {}, None, ""),
        ({}, {"pv.kubernetes.io/provisioned-by": "example.com/disk"}, None, ""),
        (
            {"hostPath": {"path": "/tmp/../etc"}},
            {},
            "VolumeFailedDelete",
            "host_path deleter only supports /tmp/.+ but received provided /tmp/../etc",
        ),
        (
            {"hostPath": None, "nfs": {}},
            {},
            "VolumeFailedDelete",
            'error getting deleter volume plugin for volume "v": no deletable volume plugin matched',
        ),
        (
            {"persistentVolumeReclaimPolicy": "Recycle"},
            {},
            "VolumeFailedRecycle",
            "No recycler plugin found for the volume!",
        ),
    ],
)
def test_how_a_volume_is_reclaimed(spec: Object, annotations: dict[str, str], reason: str | None, message: str) -> None:
    released = volume(**{"persistentVolumeReclaimPolicy": "Delete", **spec})
    released = replace_in(released, ("metadata", "annotations"), annotations)
    plan = plan_reclaim(released)
    assert plan.remove_path == ""
    assert (plan.failure.reason, plan.failure.message) == (reason, message) if plan.failure else reason is None


async def test_a_volume_that_cannot_be_deleted_fails_visibly(world: World) -> None:
    async with world.running(PERSISTENT_VOLUME_BINDER):
        pv = await world.put(PERSISTENTVOLUMES, volume(persistentVolumeReclaimPolicy="Delete"))
        await world.put(PERSISTENTVOLUMECLAIMS, claim())
        await world.client.delete(PERSISTENTVOLUMECLAIMS, "c", namespace="shop")
        await world.settle()
        message = "host_path deleter only supports /tmp/.+ but received provided /srv/x"
        assert world.client.look(PERSISTENTVOLUMES, pv)["status"] == {"phase": "Failed", "message": message}
        assert await world.events("VolumeFailedDelete") == [("Warning", "VolumeFailedDelete", message)]


# Provisioning


async def test_the_provisioner_is_named_in_the_claim_and_its_volume_bound(world: World) -> None:
    async with world.running(PERSISTENT_VOLUME_BINDER):
        await world.put(STORAGECLASSES, storage_class())
        pvc = await world.put(PERSISTENTVOLUMECLAIMS, claim())
        assert annotations_of(world.client.look(PERSISTENTVOLUMECLAIMS, pvc)) == {
            "volume.beta.kubernetes.io/storage-provisioner": "example.com/disk",
            "volume.kubernetes.io/storage-provisioner": "example.com/disk",
        }
        [(kind, _, message)] = await world.events("ExternalProvisioning")
        assert kind == "Normal"
        assert "either by the external provisioner 'example.com/disk' or manually" in message
        reference = {"namespace": "shop", "name": "c", "uid": uid_of(pvc)}
        made = replace_in(
            volume("pvc-1", claimRef=reference),
            ("metadata", "annotations"),
            {"pv.kubernetes.io/provisioned-by": "example.com/disk"},
        )
        await world.put(PERSISTENTVOLUMES, made)
        assert phases(world) == {"pvc-1": "Bound", "c": "Bound"}


async def test_who_waits_for_a_consumer_is_left_to_the_scheduler(world: World) -> None:
    async with world.running(PERSISTENT_VOLUME_BINDER):
        await world.put(STORAGECLASSES, storage_class(volumeBindingMode="WaitForFirstConsumer"))
        await world.put(PERSISTENTVOLUMES, volume())
        pvc = await world.put(PERSISTENTVOLUMECLAIMS, claim())
        assert phases(world) == {"v": "Available", "c": "Pending"}
        message = "waiting for first consumer to be created before binding"
        assert await world.events() == [("Normal", "WaitForFirstConsumer", message)]
        volumes = [{"name": "d", "persistentVolumeClaim": {"claimName": "c"}}]
        pod = {"kind": "Pod", "metadata": {"name": "p", "namespace": "shop"}, "spec": {"volumes": volumes}}
        await world.put(PODS, pod)
        assert await world.events("WaitForPodScheduled") == [
            ("Normal", "WaitForPodScheduled", "waiting for pod p to be scheduled")
        ]
        ready_pod(world.client, world.client.of(PODS)[0])
        # The scheduler has chosen a node: a volume is to be made there.
        selected = {"volume.kubernetes.io/selected-node": "n1"}
        await world.client.delete(PERSISTENTVOLUMES, "v")
        await world.edit(PERSISTENTVOLUMECLAIMS, pvc, "metadata", "annotations", value=selected)
        assert "volume.kubernetes.io/storage-provisioner" in annotations_of(
            world.client.look(PERSISTENTVOLUMECLAIMS, pvc)
        )


async def test_a_claim_without_class_gets_a_default_that_comes_later(world: World) -> None:
    async with world.running(PERSISTENT_VOLUME_BINDER):
        pvc = await world.put(PERSISTENTVOLUMECLAIMS, claim(storageClassName=None))
        none = await world.put(PERSISTENTVOLUMECLAIMS, claim("none", storageClassName=""))
        message = "no persistent volumes available for this claim and no storage class is set"
        assert ("Normal", "FailedBinding", message) in await world.events()
        mark = {"annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}
        await world.put(STORAGECLASSES, storage_class("std", metadata=mark))
        assert dig(world.client.look(PERSISTENTVOLUMECLAIMS, pvc), "spec", "storageClassName") == "std"
        assert dig(world.client.look(PERSISTENTVOLUMECLAIMS, none), "spec", "storageClassName") == ""


async def test_a_class_without_provisioner_makes_nothing(world: World) -> None:
    async with world.running(PERSISTENT_VOLUME_BINDER):
        await world.put(STORAGECLASSES, storage_class(provisioner="kubernetes.io/no-provisioner"))
        await world.put(PERSISTENTVOLUMECLAIMS, claim())
        message = "no volume plugin matched name: kubernetes.io/no-provisioner"
        assert await world.events() == [("Warning", "ProvisioningFailed", message)]


# Rules


def available(name: str, size: str, *modes: str) -> Object:
    return {**volume(name, size, modes), "status": {"phase": "Available"}}


def test_the_fewest_accesses_come_before_the_smallest_size() -> None:
    volumes = [
        available("tiny", "1Gi", "ReadWriteOnce", "ReadOnlyMany"),
        available("big", "9Gi", "ReadWriteOnce"),
        available("small", "2Gi", "ReadWriteOnce"),
        available("wrong", "1Gi", "ReadOnlyMany"),
    ]
    found = best_match(claim(), volumes, only_promised=False)
    assert found is not None
    assert name_of(found) == "small"
    assert best_match(claim(modes=("ReadWriteMany",)), volumes, only_promised=False) is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, ""),
        ({"storageClassName": "other"}, "storageClassName does not match"),
        ({"volumeAttributesClassName": "gold"}, "volumeAttributesClassName does not match"),
        ({"volumeMode": "Block"}, "incompatible volumeMode"),
        ({"accessModes": ["ReadWriteMany"]}, "incompatible accessMode"),
        ({"resources": {"requests": {"storage": "2Gi"}}}, "requested PV is too small"),
    ],
)
def test_why_a_volume_does_not_suit(changes: Object, why: str) -> None:
    assert mismatch(volume(), claim(**changes)) == why


def test_a_volume_of_a_claim_that_is_bound_elsewhere() -> None:
    pvc = replace_in(claim(volumeName="other"), ("metadata", "uid"), "uid-c")
    chosen = replace_in(bound_volume(volume(), pvc), ("status", "phase"), "Bound")
    assert plan_volume(chosen, pvc).unbind
    freed = unbound_volume(chosen)
    assert ("claimRef" in freed["spec"], annotations_of(freed)) == (False, {})
    promised = volume(claimRef={"namespace": "shop", "name": "c", "uid": "uid-c"})
    assert unbound_volume(promised)["spec"]["claimRef"] == {"namespace": "shop", "name": "c"}
    made = replace_in(promised, ("metadata", "annotations"), {"pv.kubernetes.io/provisioned-by": "x"})
    made = replace_in(made, ("spec", "persistentVolumeReclaimPolicy"), "Delete")
    plan = plan_volume(made, pvc)
    assert (plan.phase, plan.reclaim) == ("Released", True)


def test_modes_that_differ_are_told_to_both() -> None:
    pvc = replace_in(claim(volumeMode="Block"), ("metadata", "uid"), "uid-c")
    plan = plan_volume(bound_volume(volume(), pvc), pvc)
    assert plan.tell is not None
    assert plan.tell_claim is not None
    assert (plan.tell.reason, plan.phase) == ("VolumeMismatch", "")


def test_the_capacity_of_a_bound_claim_is_its_own() -> None:
    bound = replace_in(claim(), ("status",), {"phase": "Bound", "capacity": {"storage": "3Gi"}})
    assert claim_status(bound, "Bound", volume())["capacity"] == {"storage": "3Gi"}
    resized = replace_in(
        volume(), ("metadata", "annotations"), {"volume.alpha.kubernetes.io/pre-resize-capacity": "512Mi"}
    )
    assert claim_status(claim(), "Bound", resized)["capacity"] == {"storage": "512Mi"}
