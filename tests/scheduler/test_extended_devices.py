"""Extended resources that devices serve, and devices that their drivers must make ready first."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from kone.apimachinery.kinds import DEVICECLASSES, EVENTS, PODS, RESOURCECLAIMS
from kone.apimachinery.objects import Object, deep_copy, dig, name_of, replace_in, with_finalizer
from kone.apimachinery.timestamps import format_time
from kone.scheduler.device_binding import BindingFailed, is_overdue, is_ready
from kone.scheduler.extended_devices import classes_by_resource, requests_and_mappings
from tests.scheduler.support import node, pod
from tests.scheduler.test_devices import DRIVER, World, claim, device, device_class, offered, wish

GPU = "example.com/gpu"


def container(name: str, amount: int | None = None, resource: str = GPU, **more: Any) -> Object:
    resources = {"requests": {resource: str(amount), "cpu": "1"}} if amount is not None else {}
    return {"name": name, "image": "i", "resources": resources, **more}


def made(name: str, created: str, extended: str = "") -> Object:
    found = device_class(name, **({"extendedResourceName": extended} if extended else {}))
    return replace_in(found, ("metadata", "creationTimestamp"), created)


def test_the_newest_class_serves_a_resource() -> None:
    old, new = made("old", "2026-01-01T00:00:00Z", GPU), made("new", "2026-02-01T00:00:00Z", GPU)
    twin = made("a-twin", "2026-02-01T00:00:00Z", GPU)
    assert name_of(classes_by_resource([old, new])[GPU]) == "new"
    assert name_of(classes_by_resource([old, new, twin])[GPU]) == "a-twin"
    assert name_of(classes_by_resource([old, new])["deviceclass.resource.kubernetes.io/old"]) == "old"


@pytest.mark.parametrize(
    ("spec", "requests", "mappings"),
    [
        pytest.param(
            {"containers": [container("a", 2), container("b", 1)]},
            {"container-0-request-1": 2, "container-1-request-1": 1},
            ["a:container-0-request-1", "b:container-1-request-1"],
            id="each container has its own",
        ),
        pytest.param(
            {"initContainers": [container("i", 3)], "containers": [container("a", 2)]},
            {"container-0-request-1": 1, "container-1-request-1": 2},
            ["a:container-1-request-1", "i:container-1-request-1", "i:container-0-request-1"],
            id="an init container uses what comes later, and one more",
        ),
        pytest.param(
            {"initContainers": [container("i", 1), container("j", 2)], "containers": [container("a")]},
            {"container-1-request-1": 2},
            ["i:container-1-request-1", "j:container-1-request-1"],
            id="init containers share the largest of theirs",
        ),
        pytest.param(
            {
                "initContainers": [container("s", 1, restartPolicy="Always"), container("i", 1)],
                "containers": [container("a", 0)],
            },
            {"container-0-request-1": 1, "container-1-request-1": 1},
            ["s:container-0-request-1", "i:container-1-request-1"],
            id="a sidecar that runs already keeps its own",
        ),
    ],
)
def test_what_is_asked_for(spec: Object, requests: dict[str, int], mappings: list[str]) -> None:
    found, used = requests_and_mappings(spec, [GPU], {GPU: device_class("gpu")})
    assert {each["name"]: each["exactly"]["count"] for each in found} == requests
    assert {each["exactly"]["deviceClassName"] for each in found} == {"gpu"}
    assert [f"{each['containerName']}:{each['requestName']}" for each in used] == mappings


# -- the scheduler ----------------------------------------------------------------------------------------------------


@pytest.fixture
async def world() -> AsyncIterator[World]:
    found = World()
    yield found
    await found.stop()


def asking(name: str = "p", amount: int = 1) -> Object:
    return pod(name, containers=[container("c", amount)])


def claims_of(world: World) -> list[Object]:
    return world.client.of(RESOURCECLAIMS)


def refusals(world: World) -> list[str]:
    return [each["message"] for each in world.client.of(EVENTS) if each["reason"] == "FailedScheduling"]


async def test_a_pod_gets_devices_for_an_extended_resource(world: World) -> None:
    world.put(node("n1"), node("n2"), offered(device("a"), device("b"), nodeName="n2"))
    await world.scheduler.start()
    waiting = world.client.put(PODS, asking(amount=2))
    await world.settle()
    assert "2 Insufficient example.com/gpu" in world.why(waiting)
    await world.clock.advance(2)
    world.client.put(DEVICECLASSES, device_class("gpus", extendedResourceName=GPU))
    await world.settle()
    assert world.where(waiting) == "n2"
    [found] = claims_of(world)
    assert name_of(found).startswith("p-extended-resources-")
    assert found["metadata"]["annotations"] == {"resource.kubernetes.io/extended-resource-claim": "true"}
    assert [owner["uid"] for owner in found["metadata"]["ownerReferences"]] == [waiting["metadata"]["uid"]]
    results = dig(found, "status", "allocation", "devices", "results")
    assert [(each["request"], each["device"]) for each in results] == [
        ("container-0-request-1", "a"),
        ("container-0-request-1", "b"),
    ]
    assert [user["name"] for user in dig(found, "status", "reservedFor")] == ["p"]
    assert dig(world.client.look(PODS, waiting), "status", "extendedResourceClaimStatus") == {
        "resourceClaimName": name_of(found),
        "requestMappings": [
            {"containerName": "c", "resourceName": GPU, "requestName": "container-0-request-1"},
        ],
    }


async def test_what_a_node_offers_by_itself_needs_no_claim(world: World) -> None:
    world.client.put(DEVICECLASSES, device_class("gpus", extendedResourceName=GPU))
    world.put(node("n1", example_gpu=1))
    await world.scheduler.start()
    first, second = (world.client.put(PODS, asking(name)) for name in "pq")
    await world.settle()
    assert [world.where(first), world.where(second)] == ["n1", ""]
    assert "Insufficient example.com/gpu" in world.why(second)
    assert claims_of(world) == []


async def test_pods_at_once_do_not_get_the_same_device(world: World) -> None:
    world.client.put(DEVICECLASSES, device_class("gpus", extendedResourceName=GPU))
    world.put(node("n1"), offered(device("a")))
    await world.scheduler.start()
    first, second = (world.client.put(PODS, asking(name)) for name in "pq")
    await world.settle()
    assert [world.where(first), world.where(second)] == ["n1", ""]
    assert "1 cannot allocate all claims" in world.why(second)
    assert len(claims_of(world)) == 1


async def test_a_claim_left_over_from_before_is_deleted_and_the_pod_tried_again(world: World) -> None:
    world.client.put(DEVICECLASSES, device_class("gpus", extendedResourceName=GPU))
    world.put(node("n1"), offered(device("a")))
    waiting = world.client.put(PODS, asking())
    left = with_finalizer(claim(wish(), name="left"), "resource.kubernetes.io/delete-protection")
    left["metadata"]["annotations"] = {"resource.kubernetes.io/extended-resource-claim": "true"}
    left["metadata"]["ownerReferences"] = [{"kind": "Pod", "uid": waiting["metadata"]["uid"], "controller": True}]
    results = [{"request": "r0", "driver": DRIVER, "pool": "p1", "device": "a"}]
    left["status"] = {"allocation": {"devices": {"results": results}}}
    world.put(left)
    await world.scheduler.start()
    await world.settle()
    why = "1 cannot schedule extended resource claim. deletion of ResourceClaim completed"
    assert any(why in each for each in refusals(world))
    await world.clock.advance(2)
    await world.settle()
    assert world.where(waiting) == "n1"
    assert [name_of(each).startswith("p-extended-resources-") for each in claims_of(world)] == [True]


async def test_the_node_of_the_better_alternative_is_taken(world: World) -> None:
    """n1 has only what the claim wants second."""
    first, second = wish(1, "device.attributes['gpu.example.com'].size == 1"), wish()
    world.put(node("n1"), node("n2"), claim([first, second]))
    world.put(offered(device("a", size=2)), offered(device("b", size=1), pool="p2", nodeName="n2"))
    await world.scheduler.start()
    placed = world.pod()
    await world.settle()
    assert world.where(placed) == "n2"


# -- binding conditions -----------------------------------------------------------------------------------------------

BINDING = {"bindingConditions": ["example.com/ready"], "bindingFailureConditions": ["example.com/broken"]}


def with_conditions(found: Object, **statuses: str) -> Object:
    """The claim as its driver makes it: conditions of device a, by the word behind example.com/."""
    told = deep_copy(found)
    conditions = [
        {"type": f"example.com/{word}", "status": status, "reason": "Told", "message": "as it is"}
        for word, status in statuses.items()
    ]
    told["status"]["devices"] = [{"driver": DRIVER, "pool": "p1", "device": "a", "conditions": conditions}]
    return told


def given_at(when: float = 0.0) -> Object:
    found = claim(wish())
    result = {"request": "r0", "driver": DRIVER, "pool": "p1", "device": "a", **BINDING}
    allocation = {"devices": {"results": [result]}, "allocationTimestamp": format_time(when)}
    return {**found, "status": {"allocation": allocation}}


def test_a_claim_is_ready_when_every_condition_says_so() -> None:
    found = given_at()
    assert not is_ready(claim(wish()))
    assert not is_ready(found)
    assert not is_ready(with_conditions(found, ready="False"))
    assert is_ready(with_conditions(found, ready="True", broken="False"))
    with pytest.raises(BindingFailed, match='device binding failed: claim=c, reason=Told, message="as it is"'):
        is_ready(with_conditions(found, broken="True"))
    assert not is_overdue(found, 600, 600)
    assert is_overdue(found, 600, 601)


async def test_a_pod_waits_for_its_device_to_be_made_ready(world: World) -> None:
    world.put(node("n1"), offered(device("a", **BINDING, bindsToNode=True), allNodes=True), claim(wish()))
    await world.scheduler.start()
    waiting = world.pod()
    await world.settle()
    found = world.claim()
    [result] = dig(found, "status", "allocation", "devices", "results")
    assert {key: result[key] for key in BINDING} == BINDING
    only = {"key": "metadata.name", "operator": "In", "values": ["n1"]}
    assert dig(found, "status", "allocation", "nodeSelector") == {"nodeSelectorTerms": [{"matchFields": [only]}]}
    assert world.where(waiting) == ""
    await world.clock.advance(100)
    assert world.where(waiting) == ""
    events = [(each["reason"], each["message"]) for each in world.client.of(EVENTS)]
    assert ("BindingConditionsPending", "waiting for binding conditions for device on node n1") in events
    world.client.overwrite(RESOURCECLAIMS, with_conditions(world.claim(), ready="True"))
    await world.settle()
    assert world.where(waiting) == "n1"


@pytest.mark.parametrize(
    ("fails", "why"),
    [
        (True, 'device binding failed: claim=c, reason=Told, message="as it is"'),
        (False, "device binding timeout: context deadline exceeded"),
    ],
    ids=["the driver says that it failed", "ten minutes are over"],
)
async def test_a_device_that_does_not_come_is_given_back(world: World, fails: bool, why: str) -> None:
    world.put(node("n1"), claim(wish()), offered(device("a", **BINDING)))
    await world.scheduler.start()
    world.pod()
    await world.settle()
    if fails:
        world.client.overwrite(RESOURCECLAIMS, with_conditions(world.claim(), broken="True"))
    else:
        await world.clock.advance(601)
    await world.settle()
    await world.clock.advance(3)
    await world.settle()
    told = refusals(world)
    assert f'running PreBind plugin "DynamicResources": {why}' in told
    assert any("deallocation of ResourceClaim completed" in each for each in told)
