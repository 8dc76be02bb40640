"""Generic ephemeral volumes: a claim made for its pod."""

from kone.apimachinery import errors
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import GVR, PERSISTENTVOLUMECLAIMS, PODS
from kone.apimachinery.objects import Object, controller_reference
from kone.controllers.ephemeral_volumes import EPHEMERAL_VOLUME_CONTROLLER
from tests.controllers.world import World

SPEC = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}


def pod() -> Object:
    template = {"metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}}, "spec": SPEC}
    volumes = [{"name": "scratch", "ephemeral": {"volumeClaimTemplate": template}}, {"name": "x", "emptyDir": {}}]
    meta = {"name": "p", "namespace": "shop"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"volumes": volumes}}


async def test_the_pod_owns_a_claim_made_from_the_template(world: World) -> None:
    async with world.running(EPHEMERAL_VOLUME_CONTROLLER):
        owner = await world.put(PODS, pod())
        [claim] = world.client.of(PERSISTENTVOLUMECLAIMS)
        assert claim["spec"] == SPEC
        meta = claim["metadata"]
        assert (meta["name"], meta["labels"], meta["annotations"]) == ("p-scratch", {"a": "b"}, {"c": "d"})
        assert meta["ownerReferences"] == [controller_reference(owner)]


async def test_a_claim_that_is_deleted_is_made_again(world: World) -> None:
    async with world.running(EPHEMERAL_VOLUME_CONTROLLER):
        await world.put(PODS, pod())
        await world.client.delete(PERSISTENTVOLUMECLAIMS, "p-scratch", namespace="shop")
        await world.settle()
        assert len(world.client.of(PERSISTENTVOLUMECLAIMS)) == 1


async def test_a_claim_of_someone_else_is_not_taken(world: World) -> None:
    async with world.running(EPHEMERAL_VOLUME_CONTROLLER):
        meta = {"name": "p-scratch", "namespace": "shop"}
        await world.put(PERSISTENTVOLUMECLAIMS, {"kind": "PersistentVolumeClaim", "metadata": meta})
        await world.put(PODS, pod())
        why = "PVC shop/p-scratch was not created for pod shop/p (pod is not owner)"
        message = f"ephemeral volume scratch: {why}"
        assert await world.events() == [("Warning", "FailedBinding", message)]


async def test_a_refusal_is_told_and_tried_again(world: World) -> None:
    def refuse(verb: str, resource: GVR, obj: Object) -> StatusError | None:
        return (
            errors.forbidden("persistentvolumeclaims", "p-scratch", "full")
            if verb == "create" and resource == PERSISTENTVOLUMECLAIMS
            else None
        )

    world.client.refuse = refuse
    async with world.running(EPHEMERAL_VOLUME_CONTROLLER):
        await world.put(PODS, pod())
        [(_, reason, message)] = await world.events()
        assert reason == "FailedBinding"
        assert message.startswith('ephemeral volume scratch: create PVC p-scratch: persistentvolumeclaims "p-scratch"')
        world.client.refuse = lambda verb, resource, obj: None
        await world.advance(10)
        assert len(world.client.of(PERSISTENTVOLUMECLAIMS)) == 1
