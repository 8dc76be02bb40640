"""Devices for ResourceClaims: which are given, where, why not, and what is written into the claims."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kone.apimachinery.kinds import (
    DEVICECLASSES,
    DEVICETAINTRULES,
    EVENTS,
    NODES,
    PODS,
    RESOURCECLAIMS,
    RESOURCESLICES,
)
from kone.apimachinery.objects import Object, dig, find_condition, name_of
from kone.apimachinery.quantity import parse_quantity
from kone.scheduler.device_allocation import BadClaim, NotOnThisNode, Taken, allocate, consumption
from kone.scheduler.device_selectors import SelectorError, selects
from kone.scheduler.devices import Device, gather
from tests.scheduler.support import Scheduling, node, pod

DRIVER = "gpu.example.com"
N1, N2 = node("n1"), node("n2", labels={"rack": "r1"})


def device(name: str, *, memory: str = "8Gi", **more: Any) -> Object:
    """Attributes as keywords: words, numbers and truths."""
    fields = (
        *("taints", "consumesCounters", "allowMultipleAllocations", "nodeName"),
        *("bindingConditions", "bindingFailureConditions", "bindsToNode"),
    )
    given = {key: more.pop(key) for key in fields if key in more}
    kinds = {str: "string", int: "int", bool: "bool"}
    attributes = {key: {kinds[type(value)]: value} for key, value in more.items()}
    return {"name": name, "attributes": attributes, "capacity": {"memory": {"value": memory}}, **given}


def offered(*devices: Object, pool: str = "p1", slices: int = 1, generation: int = 1, **where: Any) -> Object:
    spec: Object = {
        "driver": DRIVER,
        "pool": {"name": pool, "generation": generation, "resourceSliceCount": slices},
        **(where or {"nodeName": "n1"}),
    }
    spec |= {"devices": list(devices)} if devices else {}
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceSlice",
        "metadata": {"name": f"slice-{pool}-{generation}-{len(devices)}-{where.get('nodeName', '')}"},
        "spec": spec,
    }


def device_class(name: str = "gpu", *expressions: str, **spec: Any) -> Object:
    selectors = [{"cel": {"expression": each}} for each in expressions or (f'device.driver == "{DRIVER}"',)]
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "DeviceClass",
        "metadata": {"name": name},
        "spec": {"selectors": selectors, **spec},
    }


CLASSES = {"gpu": device_class(), "small": device_class("small", "device.attributes['gpu.example.com'].size < 10")}


def wish(count: int = 1, *selectors: str, class_name: str = "gpu", **more: Any) -> Object:
    found = {"deviceClassName": class_name, "allocationMode": "ExactCount", "count": count, **more}
    if selectors:
        found["selectors"] = [{"cel": {"expression": each}} for each in selectors]
    return found


def everything(**more: Any) -> Object:
    found = wish(**more) | {"allocationMode": "All"}
    del found["count"]
    return found


def claim(*requests: Object, name: str = "c", constraints: tuple[Object, ...] = (), **devices: Any) -> Object:
    """Requests are named r0, r1 …; a list of wishes gives alternatives a0, a1 …"""
    named = []
    for number, request in enumerate(requests):
        if isinstance(request, list):
            alternatives = [{"name": f"a{i}", **each} for i, each in enumerate(request)]
            named.append({"name": f"r{number}", "firstAvailable": alternatives})
        else:
            named.append({"name": f"r{number}", "exactly": request})
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {"name": name, "namespace": "ns", "uid": f"uid-{name}"},
        "spec": {"devices": {"requests": named, "constraints": list(constraints), **devices}},
    }


def given(claims: list[Object] | Object, *slices: Object, on: Object = N1, taken: Taken | None = None) -> Any:
    """For each claim the devices as "request=device"; for one claim alone just these; None where it cannot be."""
    several = claims if isinstance(claims, list) else [claims]
    ids = itertools.count(1)
    found = allocate(several, name_of(on), gather(slices, on), CLASSES, taken or Taken(), lambda: f"share-{next(ids)}")
    if found is None:
        return None
    texts = [[f"{r['request']}={r['device']}" for r in each["devices"]["results"]] for each in found]
    return texts if isinstance(claims, list) else texts[0]


FOUR = offered(
    device("a", model="x", size=1),
    device("b", model="y", size=20),
    device("c", model="x", size=3),
    device("d", model="y", size=40),
)
SAME_MODEL = {"matchAttribute": "gpu.example.com/model"}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        pytest.param(claim(wish()), ["r0=a"], id="the first that is free"),
        pytest.param(claim(wish(3)), ["r0=a", "r0=b", "r0=c"], id="three"),
        pytest.param(claim(wish(5)), None, id="more than there are"),
        pytest.param(claim(wish(1), wish(2)), ["r0=a", "r1=b", "r1=c"], id="two requests share no device"),
        pytest.param(
            claim(wish(1, 'device.attributes["gpu.example.com"].model == "y"')), ["r0=b"], id="by an attribute"
        ),
        pytest.param(
            claim(wish(1, 'device.capacity["gpu.example.com"].memory.compareTo(quantity("8Gi")) > 0')),
            None,
            id="by a capacity that none has",
        ),
        pytest.param(
            claim(wish(1, '"other" in device.attributes || has(device.attributes["other"].x)')),
            None,
            id="a domain that is not there is empty",
        ),
        pytest.param(claim(wish(2, class_name="small")), ["r0=a", "r0=c"], id="by the class"),
        pytest.param(claim(wish(2), constraints=(SAME_MODEL,)), ["r0=a", "r0=c"], id="of one model"),
        pytest.param(claim(wish(3), constraints=(SAME_MODEL,)), None, id="no three of one model"),
        pytest.param(
            claim(wish(1), wish(1, 'device.attributes["gpu.example.com"].size > 30'), constraints=(SAME_MODEL,)),
            ["r0=b", "r1=d"],
            id="what leads nowhere is taken back",
        ),
        pytest.param(
            claim(wish(1), wish(2), constraints=({**SAME_MODEL, "requests": ["r1"]},)),
            ["r0=a", "r1=b", "r1=d"],
            id="a constraint on one request",
        ),
        pytest.param(
            claim(wish(2), constraints=({"distinctAttribute": "gpu.example.com/model"},)),
            ["r0=a", "r0=b"],
            id="of different models",
        ),
        pytest.param(claim([wish(9), wish(2)]), ["r0/a1=a", "r0/a1=b"], id="the first alternative that can be had"),
        pytest.param(claim([wish(2), wish(1)], wish(3)), ["r0/a1=a", "r1=b", "r1=c", "r1=d"], id="alternatives yield"),
        pytest.param(claim(everything(class_name="small")), ["r0=a", "r0=c"], id="all that the class selects"),
        pytest.param(claim(everything(), wish()), None, id="nothing is left beside all"),
    ],
)
def test_what_is_given(wanted: Object, expected: list[str] | None) -> None:
    assert given(wanted, FOUR) == expected


def test_claims_of_one_pod_share_no_device() -> None:
    assert given([claim(wish(2)), claim(wish(2), name="d")], FOUR) == [["r0=a", "r0=b"], ["r0=c", "r0=d"]]
    assert given([claim(wish(3)), claim(wish(2), name="d")], FOUR) is None


def test_what_others_hold_is_left_to_them_but_for_administrators() -> None:
    taken = Taken()
    taken.add({"devices": {"results": [{"driver": DRIVER, "pool": "p1", "device": each} for each in "abc"]}})
    taken.add({"devices": {"results": [{"driver": DRIVER, "pool": "p1", "device": "d", "adminAccess": True}]}})
    assert given(claim(wish()), FOUR, taken=taken) == ["r0=d"]
    assert given(claim(wish(2)), FOUR, taken=taken) is None
    assert given(claim(everything(adminAccess=True)), FOUR, taken=taken) == ["r0=a", "r0=b", "r0=c", "r0=d"]


@pytest.mark.parametrize(
    ("slices", "on", "expected"),
    [
        ([offered(device("a"))], N2, None),
        ([offered(device("a"), allNodes=True)], N2, ["r0=a"]),
        (
            [
                offered(
                    device("a"),
                    nodeSelector={
                        "nodeSelectorTerms": [
                            {"matchExpressions": [{"key": "rack", "operator": "In", "values": ["r1"]}]}
                        ]
                    },
                )
            ],
            N2,
            ["r0=a"],
        ),
        (
            [offered(device("a", nodeName="n1"), device("b", nodeName="n2"), perDeviceNodeSelection=True)],
            N2,
            ["r0=b"],
        ),
        ([offered(device("old")), offered(device("new"), device("newer"), generation=2)], N1, ["r0=new"]),
        ([offered(device("a"), slices=2)], N1, None),
    ],
    ids=["another node's", "all nodes", "nodes by label", "device by device", "newest only", "half there"],
)
def test_what_a_node_reaches(slices: list[Object], on: Object, expected: list[str] | None) -> None:
    assert given(claim(wish()), *slices, on=on) == expected


@pytest.mark.parametrize(
    ("slices", "why"),
    [
        (
            [offered(device("a"), slices=2)],
            "claim ns/c, request r0: asks for all devices, but resource pool gpu.example.com/p1 is "
            "currently being updated",
        ),
        (
            [offered(device("a"), device("a"))],
            "claim ns/c, request r0: asks for all devices, but resource pool gpu.example.com/p1 is currently invalid",
        ),
    ],
)
def test_all_of_a_pool_that_is_not_whole(slices: list[Object], why: str) -> None:
    with pytest.raises(BadClaim) as error:
        given(claim(everything()), *slices)
    assert str(error.value) == why


def test_a_claim_for_more_than_it_could_name() -> None:
    with pytest.raises(BadClaim) as error:
        given(claim(wish(30), [wish(5), wish(3)]), FOUR)
    why = "adding 3 devices exceeds the claim limit of 32, with 30 already accounted for"
    assert str(error.value) == f"claim ns/c, request r1: {why}"


def test_all_devices_that_must_not_go_together() -> None:
    with pytest.raises(BadClaim) as error:
        given(claim(everything(), constraints=(SAME_MODEL,)), FOUR)
    why = "cannot add device gpu.example.com/p1/b because a claim constraint would not be satisfied"
    assert str(error.value) == f"claim ns/c, request r0: {why}"


def test_combinations_are_tried_and_not_their_orders_and_not_for_ever() -> None:
    """Half of the devices are of another model: ten that match cannot be had of 16, 18 of 40 not either."""

    def mixed(count: int) -> Object:
        return offered(*(device(f"d{i:02}", model="xy"[i % 2]) for i in range(count)))

    assert given(claim(wish(10), constraints=(SAME_MODEL,)), mixed(16)) is None
    with pytest.raises(BadClaim, match="node n1: timed out trying to allocate devices"):
        given(claim(wish(21), constraints=(SAME_MODEL,)), mixed(40))


def test_a_request_for_two_does_not_get_a_shared_device_twice() -> None:
    shares = offered(device("a", allowMultipleAllocations=True), device("b", allowMultipleAllocations=True))
    small = {"capacity": {"requests": {"memory": "1Gi"}}}
    assert given(claim(wish(2, **small)), shares) == ["r0=a", "r0=b"]


def test_a_pool_that_contradicts_itself_is_told_where_nothing_else_helps() -> None:
    twice = offered(device("a"), device("a"))
    with pytest.raises(NotOnThisNode, match="invalid resource pools were encountered"):
        given(claim(wish()), twice)
    assert given(claim(wish()), twice, offered(device("z"), pool="p2")) == ["r0=z"]


TAINT = {"key": "broken", "value": "yes", "effect": "NoSchedule"}


@pytest.mark.parametrize(
    ("toleration", "covers"),
    [
        ({"key": "broken", "operator": "Exists"}, True),
        ({"operator": "Exists"}, True),
        ({"key": "broken", "value": "yes"}, True),
        ({"key": "broken", "value": "no"}, False),
        ({"key": "broken", "operator": "Exists", "effect": "NoExecute"}, False),
        ({"key": "other", "operator": "Exists"}, False),
    ],
)
def test_a_tainted_device_is_for_those_that_tolerate_it(toleration: Object, covers: bool) -> None:
    tainted = offered(device("a", taints=[TAINT]), device("b", taints=[{**TAINT, "effect": "None"}]))
    assert given(claim(wish(tolerations=[toleration])), tainted) == (["r0=a"] if covers else ["r0=b"])


def test_counters_that_partitions_share() -> None:
    """A card of 40Gi: two halves of 20Gi can be had, or the whole, not both."""
    counters = {"memory": {"value": "40Gi"}}

    def part(name: str, memory: str) -> Object:
        return device(name, consumesCounters=[{"counterSet": "card", "counters": {"memory": {"value": memory}}}])

    card = offered(slices=2, nodeName="n1", sharedCounters=[{"name": "card", "counters": counters}])
    parts = offered(part("whole", "40Gi"), part("half1", "20Gi"), part("half2", "20Gi"), slices=2)
    assert given(claim(wish(1)), card, parts) == ["r0=whole"]
    assert given(claim(wish(2)), card, parts) == ["r0=half1", "r0=half2"]
    assert given(claim(wish(3)), card, parts) is None
    taken = Taken()
    taken.add({"devices": {"results": [{"driver": DRIVER, "pool": "p1", "device": "half1"}]}})
    assert given(claim(wish()), card, parts, taken=taken) == ["r0=half2"]


def shared(policy: Object | None = None, memory: str = "8Gi") -> Object:
    found = device("s", memory=memory, allowMultipleAllocations=True)
    if policy is not None:
        found["capacity"]["memory"]["requestPolicy"] = policy
    return found


def asks(memory: str) -> Object:
    return {"capacity": {"requests": {"memory": memory}}}


STEPS = {"default": "1Gi", "validRange": {"min": "2Gi", "step": "2Gi", "max": "6Gi"}}


@pytest.mark.parametrize(
    ("policy", "asked", "used"),
    [
        (None, None, "8Gi"),
        (None, "1Gi", "1Gi"),
        (None, "9Gi", None),
        (STEPS, None, "1Gi"),
        (STEPS, "1Gi", "2Gi"),
        (STEPS, "3Gi", "4Gi"),
        (STEPS, "4Gi", "4Gi"),
        (STEPS, "7Gi", None),
        ({"default": "1Gi", "validValues": ["1Gi", "4Gi"]}, "2Gi", "4Gi"),
        ({"default": "1Gi", "validValues": ["1Gi", "4Gi"]}, "5Gi", None),
    ],
)
def test_capacity_by_policy(policy: Object | None, asked: str | None, used: str | None) -> None:
    spec = offered(shared(policy))["spec"]
    found = consumption(Device(spec, spec["devices"][0]), {"memory": asked} if asked else {})
    assert found == ({"memory": parse_quantity(used)} if used else None)


def test_a_shared_device_lasts_as_long_as_its_capacity() -> None:
    slices = offered(shared({"default": "1Gi", "validRange": {"min": "1Gi"}}))
    several = [claim(wish(**asks("3Gi")), name=name) for name in ("c", "d", "e")]
    assert given(several[:2], slices) == [["r0=s"], ["r0=s"]]
    assert given(several, slices) is None
    [allocation] = allocate(several[:1], "n1", gather([slices], N1), CLASSES, Taken(), lambda: "share") or []
    [result] = allocation["devices"]["results"]
    assert (result["shareID"], result["consumedCapacity"]) == ("share", {"memory": "3Gi"})
    taken = Taken()
    taken.add(allocation)
    assert given(several[1], slices, taken=taken) == ["r0=s"]
    assert given(several[1:], slices, taken=taken) is None


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("device.nothing", "class gpu: selector #0: CEL compile error: "),
        ("1", "class gpu: selector #0: CEL compile error: must evaluate to bool or the unknown type, not int"),
        (
            'device.attributes["gpu.example.com"].absent',
            "class gpu: selector #0 on device gpu.example.com/p1/a: CEL runtime error: no such key: absent",
        ),
    ],
)
def test_selectors_that_cannot_be_asked(expression: str, why: str) -> None:
    spec = offered(device("a"))["spec"]
    with pytest.raises(SelectorError) as error:
        selects([{"cel": {"expression": expression}}], Device(spec, spec["devices"][0]), "class gpu")
    assert str(error.value).startswith(why)


def test_versions_are_compared_as_such() -> None:
    found = device("a")
    found["attributes"] = {"driverVersion": {"version": "1.10.0"}}
    spec = offered(found)["spec"]
    newer = 'device.attributes["gpu.example.com"].driverVersion.compareTo(semver("1.9.0")) > 0'
    assert selects([{"cel": {"expression": newer}}], Device(spec, spec["devices"][0]), "class gpu")


def test_a_shared_device_costs_its_counters_once() -> None:
    """A whole device and a partition of it share a counter; the partition may be used by several."""
    use = [{"counterSet": "s", "counters": {"memory": {"value": "6Gi"}}}]
    counters = {"name": "s", "counters": {"memory": {"value": "10Gi"}}}
    shares = {"allowMultipleAllocations": True, "consumesCounters": use}
    of_counters = offered(slices=2)
    of_counters["spec"] |= {"sharedCounters": [counters]}
    slices = [of_counters, offered(device("part", **shares), device("whole", consumesCounters=use), slices=2)]
    small = {"capacity": {"requests": {"memory": "2Gi"}}}
    several = [claim(wish(**small), name=name) for name in "cd"]
    assert given(several, *slices) == [["r0=part"], ["r0=part"]]
    [allocation] = allocate(several[:1], "n1", gather(slices, N1), CLASSES, Taken(), lambda: "share") or []
    taken = Taken()
    taken.add(allocation)
    assert given(several[1], *slices, taken=taken) == ["r0=part"]
    assert given(claim(wish(1, "!device.allowMultipleAllocations")), *slices, taken=taken) is None


def test_what_drivers_are_told_and_from_where_the_devices_can_be_reached() -> None:
    opaque = {"opaque": {"driver": DRIVER, "parameters": {"a": 1}}}
    classes = {"gpu": device_class(config=[opaque]), "other": device_class("other")}
    for_one = {"requests": ["r1"], **opaque}
    wanted = claim(wish(), wish(class_name="other"), config=[for_one, opaque, {"requests": ["absent"], **opaque}])
    [found] = allocate([wanted], "n1", gather([FOUR], N1), classes, Taken(), lambda: "") or []
    assert found["devices"]["config"] == [
        {"source": "FromClass", "requests": ["r0"], **opaque},
        {"source": "FromClaim", **for_one},
        {"source": "FromClaim", **opaque},
    ]
    only = {"key": "metadata.name", "operator": "In", "values": ["n1"]}
    assert found["nodeSelector"] == {"nodeSelectorTerms": [{"matchFields": [only]}]}


# -- the scheduler --------------------------------------------------------------------------------------------------


class World(Scheduling):
    def __init__(self) -> None:
        super().__init__()
        for each in CLASSES.values():
            self.client.put(DEVICECLASSES, each)

    def put(self, *objects: Object) -> None:
        kinds = {"Node": NODES, "ResourceClaim": RESOURCECLAIMS, "ResourceSlice": RESOURCESLICES}
        kinds["DeviceTaintRule"] = DEVICETAINTRULES
        for each in objects:
            self.client.put(kinds[each["kind"]], each)

    def pod(self, name: str = "p", claim_name: str = "c", **more: Any) -> Object:
        wanted = [{"name": "dev", "resourceClaimName": claim_name}]
        return self.client.put(PODS, pod(name, resourceClaims=wanted, **more))

    def claim(self, name: str = "c") -> Object:
        return self.client.look(RESOURCECLAIMS, claim(name=name))


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    await made.stop()


async def test_a_pod_gets_a_device_and_the_claim_says_so(world: World) -> None:
    world.put(N1, N2, offered(device("a"), nodeName="n2"), claim(wish()))
    await world.scheduler.start()
    made = world.pod()
    await world.settle()
    assert world.where(made) == "n2"
    found = world.claim()
    assert found["metadata"]["finalizers"] == ["resource.kubernetes.io/delete-protection"]
    [result] = dig(found, "status", "allocation", "devices", "results")
    assert result == {"request": "r0", "driver": DRIVER, "pool": "p1", "device": "a"}
    assert dig(found, "status", "allocation", "allocationTimestamp")
    assert dig(found, "status", "reservedFor") == [{"resource": "pods", "name": "p", "uid": made["metadata"]["uid"]}]


async def test_a_second_pod_shares_the_claim_on_its_node(world: World) -> None:
    world.put(N1, N2, offered(device("a"), nodeName="n2"), claim(wish()))
    await world.scheduler.start()
    world.pod("p")
    await world.settle()
    second = world.pod("q")
    await world.settle()
    assert world.where(second) == "n2"
    assert [user["name"] for user in dig(world.claim(), "status", "reservedFor")] == ["p", "q"]


async def test_pods_at_once_do_not_get_the_same_device(world: World) -> None:
    world.put(N1, offered(device("a"), device("b")), *(claim(wish(), name=name) for name in "cde"))
    await world.scheduler.start()
    made = [world.pod(f"p-{name}", name) for name in "cde"]
    await world.settle()
    assert [world.where(each) for each in made] == ["n1", "n1", ""]
    assert world.why(made[2]) == (
        "0/1 nodes are available: 1 cannot allocate all claims. preemption: 0/1 nodes are available: "
        "1 Preemption is not helpful for scheduling."
    )
    devices = {dig(world.claim(name), "status", "allocation", "devices", "results")[0]["device"] for name in "cd"}
    assert devices == {"a", "b"}


async def test_a_pod_waits_for_its_claim_and_for_devices(world: World) -> None:
    world.put(N1)
    await world.scheduler.start()
    made = world.pod()
    await world.settle()
    assert (world.where(made), world.why(made)) == ("", "")
    world.put(claim(wish()))
    await world.settle()
    assert "1 cannot allocate all claims." in world.why(made)
    await world.clock.advance(2)
    world.put(offered(device("a")))
    await world.settle()
    assert world.where(made) == "n1"


async def test_a_class_that_is_not_there(world: World) -> None:
    world.put(N1, offered(device("a")), claim(wish(class_name="absent")))
    await world.scheduler.start()
    made = world.pod()
    await world.settle()
    assert world.why(made).startswith("0/1 nodes are available: request r0: device class absent does not exist.")
    world.client.put(DEVICECLASSES, device_class("absent"))
    await world.clock.advance(2)
    await world.settle()
    assert world.where(made) == "n1"


async def test_a_claim_made_from_a_template_must_be_the_pods_own(world: World) -> None:
    world.put(N1, offered(device("a")))
    await world.scheduler.start()
    made = world.client.put(PODS, pod("p", resourceClaims=[{"name": "dev", "resourceClaimTemplateName": "t"}]))
    own = claim(wish(), name="made")
    owner = {"kind": "Pod", "name": "p", "uid": made["metadata"]["uid"], "controller": True}
    own["metadata"]["ownerReferences"] = [owner]
    world.put(own)
    await world.settle()
    assert world.where(made) == ""
    named = {"resourceClaimStatuses": [{"name": "dev", "resourceClaimName": "made"}]}
    world.client.overwrite(PODS, {**world.client.look(PODS, made), "status": named})
    await world.settle()
    assert world.where(made) == "n1"


async def test_an_unused_claim_that_got_devices_elsewhere_is_given_free(world: World) -> None:
    """The claim's device is on n2, which the pod must not go to."""
    world.put(N1, N2, offered(device("a")), offered(device("b"), pool="p2", nodeName="n2"))
    allocation = {
        "devices": {"results": [{"request": "r0", "driver": DRIVER, "pool": "p2", "device": "b"}]},
        "nodeSelector": {
            "nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]}]
        },
    }
    world.put({**claim(wish()), "status": {"allocation": allocation}})
    await world.scheduler.start()
    made = world.pod(nodeSelector={"kubernetes.io/hostname": "n1"})
    await world.settle()
    [event] = [each for each in world.client.of(EVENTS) if each["reason"] == "FailedScheduling"]
    assert event["message"] == (
        "0/2 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, "
        "1 resourceclaim not available on the node. deallocation of ResourceClaim completed, preemption: "
        "0/2 nodes are available: 2 Preemption is not helpful for scheduling."
    )
    await world.clock.advance(2)
    await world.settle()
    assert world.where(made) == "n1"
    assert dig(world.claim(), "status", "allocation", "devices", "results")[0]["device"] == "a"


async def test_a_rule_taints_devices_from_outside(world: World) -> None:
    rule = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "DeviceTaintRule",
        "metadata": {"name": "broken"},
        "spec": {"deviceSelector": {"driver": DRIVER, "device": "a"}, "taint": TAINT},
    }
    world.put(N1, offered(device("a"), device("b")), rule, claim(wish()))
    await world.scheduler.start()
    world.pod()
    await world.settle()
    assert dig(world.claim(), "status", "allocation", "devices", "results")[0]["device"] == "b"


async def test_a_selector_that_fails_is_told_as_an_error(world: World) -> None:
    world.put(N1, offered(device("a")), claim(wish(1, 'device.attributes["x"].y == 1')))
    await world.scheduler.start()
    made = world.pod()
    await world.settle()
    condition = find_condition(world.client.look(PODS, made), "PodScheduled") or {}
    assert condition["reason"] == "SchedulerError"
    assert condition["message"] == (
        'running "DynamicResources" filter plugin: claim ns/c: selector #0 on device gpu.example.com/p1/a: '
        "CEL runtime error: no such key: y"
    )


async def test_a_claim_that_others_change_meanwhile_is_read_again(world: World) -> None:
    world.put(N1, offered(device("a")), claim(wish()))
    await world.scheduler.start()
    update = world.client.update
    seen: list[str] = []

    async def racing(resource: Any, obj: Object, *, subresource: str = "") -> Object:
        if not seen:
            seen.append(obj["metadata"]["name"])
            live = world.claim()
            world.client.overwrite(RESOURCECLAIMS, {**live, "metadata": {**live["metadata"], "labels": {"a": "b"}}})
        return await update(resource, obj, subresource=subresource)

    world.client.update = racing  # type: ignore[method-assign]
    made = world.pod()
    await world.settle()
    assert world.where(made) == "n1"
    assert world.claim()["metadata"]["labels"] == {"a": "b"}
