"""Claims and volumes stay while they are used, and tell since when they are not."""

from kone.apimachinery.kinds import PERSISTENTVOLUMECLAIMS, PERSISTENTVOLUMES, PODS
from kone.apimachinery.objects import Object, controller_reference, find_condition, is_deleting
from kone.controllers.volume_protection import (
    ATTRIBUTES_CLASS_PROTECTION_CONTROLLER,
    ATTRIBUTES_CLASSES,
    CLAIM_PROTECTION_CONTROLLER,
    VOLUME_PROTECTION_CONTROLLER,
)
from tests.controllers.world import World, conditions
from tests.fakes import ready_pod, set_pod_status

PROTECTED = {"finalizers": ["kubernetes.io/pvc-protection"]}


def claim(name: str = "c", phase: str = "Pending", **meta: object) -> Object:
    return {
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": "shop", **meta},
        "spec": {},
        "status": {"phase": phase},
    }


def pod(name: str = "p", ephemeral: bool = False) -> Object:
    volume: Object = {"name": "v", "persistentVolumeClaim": {"claimName": "c"}}
    if ephemeral:
        volume = {"name": "v", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}}
    meta = {"name": name, "namespace": "shop"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"volumes": [volume]}}


async def delete_claim(world: World, name: str = "c") -> None:
    await world.client.delete(PERSISTENTVOLUMECLAIMS, name, namespace="shop")
    await world.settle()


async def test_what_has_no_finalizer_gets_one(world: World) -> None:
    async with world.running(CLAIM_PROTECTION_CONTROLLER, VOLUME_PROTECTION_CONTROLLER):
        pvc = await world.put(PERSISTENTVOLUMECLAIMS, claim())
        pv = await world.put(PERSISTENTVOLUMES, {"kind": "PersistentVolume", "metadata": {"name": "v"}})
        found = world.client.look(PERSISTENTVOLUMECLAIMS, pvc)["metadata"]["finalizers"]
        assert found == ["kubernetes.io/pvc-protection"]
        found = world.client.look(PERSISTENTVOLUMES, pv)["metadata"]["finalizers"]
        assert found == ["kubernetes.io/pv-protection"]


async def test_a_claim_stays_while_a_pod_with_a_node_uses_it(world: World) -> None:
    async with world.running(CLAIM_PROTECTION_CONTROLLER):
        pvc = await world.put(PERSISTENTVOLUMECLAIMS, claim(**PROTECTED))
        user = await world.put(PODS, pod())
        ready_pod(world.client, user)
        await delete_claim(world)
        assert is_deleting(world.client.look(PERSISTENTVOLUMECLAIMS, pvc))
        set_pod_status(world.client, user, phase="Succeeded")
        await world.settle()
        assert world.client.of(PERSISTENTVOLUMECLAIMS), "a finished pod still has its mounts"
        await world.client.delete(PODS, "p", namespace="shop", grace_s=0)
        await world.settle()
        assert world.client.of(PERSISTENTVOLUMECLAIMS) == []


async def test_a_claim_goes_at_once_when_no_pod_has_a_node(world: World) -> None:
    async with world.running(CLAIM_PROTECTION_CONTROLLER):
        await world.put(PERSISTENTVOLUMECLAIMS, claim(**PROTECTED))
        await world.put(PODS, pod())
        await delete_claim(world)
        assert world.client.of(PERSISTENTVOLUMECLAIMS) == []


async def test_the_claim_of_an_ephemeral_volume_goes_once_its_pod_is_shut_down(world: World) -> None:
    async with world.running(CLAIM_PROTECTION_CONTROLLER):
        held = pod(ephemeral=True)
        held["metadata"]["finalizers"] = ["example.com/wait"]
        user = await world.put(PODS, held)
        ready_pod(world.client, user)
        owners = [controller_reference(user)]
        await world.put(PERSISTENTVOLUMECLAIMS, claim("p-v", ownerReferences=owners, **PROTECTED))
        await delete_claim(world, "p-v")
        assert len(world.client.of(PERSISTENTVOLUMECLAIMS)) == 1
        await world.client.delete(PODS, "p", namespace="shop", grace_s=0)
        await world.settle()
        assert (len(world.client.of(PODS)), world.client.of(PERSISTENTVOLUMECLAIMS)) == (1, [])


async def test_a_volume_stays_while_it_is_bound(world: World) -> None:
    async with world.running(VOLUME_PROTECTION_CONTROLLER):
        bound = {"kind": "PersistentVolume", "metadata": {"name": "v"}, "spec": {}, "status": {"phase": "Bound"}}
        pv = await world.put(PERSISTENTVOLUMES, bound)
        await world.client.delete(PERSISTENTVOLUMES, "v")
        await world.settle()
        newest = world.client.look(PERSISTENTVOLUMES, pv)
        await world.client.update(PERSISTENTVOLUMES, {**newest, "status": {"phase": "Released"}}, subresource="status")
        await world.settle()
        assert world.client.of(PERSISTENTVOLUMES) == []


async def test_a_bound_claim_tells_since_when_nobody_uses_it(world: World) -> None:
    async with world.running(CLAIM_PROTECTION_CONTROLLER):
        pvc = await world.put(PERSISTENTVOLUMECLAIMS, claim(phase="Bound", **PROTECTED))
        assert conditions(world.client.look(PERSISTENTVOLUMECLAIMS, pvc)) == {"Unused": ("True", "NoPodsUsingPVC")}
        before = find_condition(world.client.look(PERSISTENTVOLUMECLAIMS, pvc), "Unused") or {}
        await world.advance(60)
        user = await world.put(PODS, pod())
        after = find_condition(world.client.look(PERSISTENTVOLUMECLAIMS, pvc), "Unused") or {}
        assert (after["status"], after["reason"]) == ("False", "PodUsingPVC")
        assert after["lastTransitionTime"] != before["lastTransitionTime"]
        set_pod_status(world.client, user, phase="Succeeded")
        await world.settle()
        assert conditions(world.client.look(PERSISTENTVOLUMECLAIMS, pvc))["Unused"][0] == "True"


async def test_a_claim_that_is_not_bound_tells_nothing(world: World) -> None:
    async with world.running(CLAIM_PROTECTION_CONTROLLER):
        pvc = await world.put(PERSISTENTVOLUMECLAIMS, claim(**PROTECTED))
        assert conditions(world.client.look(PERSISTENTVOLUMECLAIMS, pvc)) == {}


async def test_an_attributes_class_stays_while_a_claim_or_volume_names_it(world: World) -> None:
    async with world.running(ATTRIBUTES_CLASS_PROTECTION_CONTROLLER):
        made = await world.put(ATTRIBUTES_CLASSES, {"kind": "VolumeAttributesClass", "metadata": {"name": "gold"}})
        finalizers = world.client.look(ATTRIBUTES_CLASSES, made)["metadata"]["finalizers"]
        assert finalizers == ["kubernetes.io/vac-protection"]
        user = {**claim(), "spec": {"volumeAttributesClassName": "gold"}}
        pvc = await world.put(PERSISTENTVOLUMECLAIMS, user)
        spec = {"volumeAttributesClassName": "gold"}
        await world.put(PERSISTENTVOLUMES, {"kind": "PersistentVolume", "metadata": {"name": "v"}, "spec": spec})
        await world.client.delete(ATTRIBUTES_CLASSES, "gold")
        await world.edit(PERSISTENTVOLUMECLAIMS, pvc, "spec", value={})
        assert is_deleting(world.client.look(ATTRIBUTES_CLASSES, made))
        await world.client.delete(PERSISTENTVOLUMES, "v")
        await world.settle()
        assert world.client.of(ATTRIBUTES_CLASSES) == []
