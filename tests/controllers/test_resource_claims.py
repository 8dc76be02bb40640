"""ResourceClaims: made for pods, reserved, released, deleted."""

from kone.apimachinery.kinds import PODS
from kone.apimachinery.objects import Object, annotations_of, dig, is_deleting, name_of, uid_of
from kone.controllers.resource_claims import (
    CLAIMS,
    RESOURCE_CLAIM_CONTROLLER,
    RESOURCE_CLAIM_RELEASE_CONTROLLER,
    TEMPLATES,
    generated_prefix,
)
from tests.controllers.world import World
from tests.fakes import ready_pod, set_pod_status

CONTROLLERS = (RESOURCE_CLAIM_CONTROLLER, RESOURCE_CLAIM_RELEASE_CONTROLLER)
FINALIZER = "resource.kubernetes.io/delete-protection"


def template() -> Object:
    inside = {"metadata": {"labels": {"a": "b"}}, "spec": {"devices": {"requests": [{"name": "gpu"}]}}}
    meta = {"name": "t", "namespace": "shop"}
    return {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaimTemplate", "metadata": meta, "spec": inside}


def pod(**claim: str) -> Object:
    claims = [{"name": "gpu", **(claim or {"resourceClaimTemplateName": "t"})}]
    meta = {"name": "p", "namespace": "shop"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"resourceClaims": claims}}


def claim(*users: Object, **meta: object) -> Object:
    reserved = [{"resource": "pods", "name": name_of(user), "uid": uid_of(user)} for user in users]
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {"name": "c", "namespace": "shop", "finalizers": [FINALIZER], **meta},
        "spec": {},
        "status": {"allocation": {"devices": {}}, "reservedFor": reserved},
    }


async def test_a_claim_is_made_from_the_template_and_noted_in_the_pod(world: World) -> None:
    async with world.running(*CONTROLLERS):
        await world.put(TEMPLATES, template())
        user = await world.put(PODS, pod())
        [made] = world.client.of(CLAIMS)
        assert name_of(made).startswith("p-gpu-")
        assert annotations_of(made) == {"resource.kubernetes.io/pod-claim-name": "gpu"}
        assert made["metadata"]["labels"] == {"a": "b"}
        assert made["spec"] == {"devices": {"requests": [{"name": "gpu"}]}}
        owner = {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid_of(user), "controller": True}
        assert made["metadata"]["ownerReferences"] == [owner]
        noted = [{"name": "gpu", "resourceClaimName": name_of(made)}]
        assert world.client.look(PODS, user)["status"]["resourceClaimStatuses"] == noted


async def test_a_missing_template_is_told_and_waited_for(world: World) -> None:
    async with world.running(*CONTROLLERS):
        await world.put(PODS, pod())
        why = 'resource claim template "t": resourceclaimtemplate.resource.k8s.io "t" not found'
        message = f"PodResourceClaim gpu: {why}"
        assert await world.events() == [("Warning", "FailedResourceClaimCreation", message)]
        await world.put(TEMPLATES, template())
        assert len(world.client.of(CLAIMS)) == 1


async def test_a_claim_that_was_deleted_is_made_again(world: World) -> None:
    async with world.running(*CONTROLLERS):
        await world.put(TEMPLATES, template())
        user = await world.put(PODS, pod())
        [made] = world.client.of(CLAIMS)
        await world.client.delete(CLAIMS, name_of(made), namespace="shop")
        await world.settle()
        [again] = world.client.of(CLAIMS)
        noted = dig(world.client.look(PODS, user), "status", "resourceClaimStatuses", 0, "resourceClaimName")
        assert noted == name_of(again)


async def test_a_pod_bound_past_the_scheduler_gets_its_reservation(world: World) -> None:
    async with world.running(*CONTROLLERS):
        made = await world.put(CLAIMS, claim())
        user = await world.put(PODS, pod(resourceClaimName="c"))
        assert dig(world.client.look(CLAIMS, made), "status", "reservedFor") == []
        ready_pod(world.client, user)
        await world.settle()
        reserved = dig(world.client.look(CLAIMS, made), "status", "reservedFor")
        assert reserved == [{"resource": "pods", "name": "p", "uid": uid_of(user)}]


async def test_the_last_user_gives_the_devices_back(world: World) -> None:
    async with world.running(*CONTROLLERS):
        user = await world.put(PODS, pod(resourceClaimName="c"))
        made = await world.put(CLAIMS, claim(user))
        assert dig(world.client.look(CLAIMS, made), "status", "allocation") is not None
        set_pod_status(world.client, user, phase="Succeeded")
        await world.settle()
        found = world.client.look(CLAIMS, made)
        assert (found["status"], found["metadata"].get("finalizers")) == ({"reservedFor": []}, None)


async def test_reservations_of_others_than_pods_stay(world: World) -> None:
    async with world.running(*CONTROLLERS):
        given = claim()
        given["status"]["reservedFor"] = [{"apiGroup": "x.io", "resource": "jobs", "name": "j", "uid": "u"}]
        made = await world.put(CLAIMS, given)
        assert len(dig(world.client.look(CLAIMS, made), "status", "reservedFor")) == 1


async def test_a_claim_that_is_deleted_goes_when_nobody_uses_it(world: World) -> None:
    async with world.running(*CONTROLLERS):
        user = await world.put(PODS, pod(resourceClaimName="c"))
        made = await world.put(CLAIMS, claim(user))
        await world.client.delete(CLAIMS, "c", namespace="shop")
        await world.settle()
        assert is_deleting(world.client.look(CLAIMS, made))
        await world.client.delete(PODS, "p", namespace="shop")
        await world.settle()
        assert world.client.of(CLAIMS) == []


async def test_a_claim_made_for_a_pod_goes_when_the_pod_is_done(world: World) -> None:
    async with world.running(*CONTROLLERS):
        await world.put(TEMPLATES, template())
        user = await world.put(PODS, pod())
        set_pod_status(world.client, user, phase="Failed")
        await world.settle()
        assert world.client.of(CLAIMS) == []


def test_long_names_are_cut_in_proportion() -> None:
    assert generated_prefix("p", "gpu") == "p-gpu-"
    cut = generated_prefix("p" * 60, "c" * 30)
    assert len(cut) <= 58
    assert cut.count("p") > cut.count("c") > 10
