"""Pods whose devices are tainted: when they go, for whose sake, and what the rule says of it."""

from __future__ import annotations

from typing import Any

import pytest

from kone.aio.clock import FakeClock
from kone.apimachinery.kinds import DEVICETAINTRULES, PODS, RESOURCECLAIMS, RESOURCESLICES
from kone.apimachinery.objects import Object, find_condition, is_deleting
from kone.apimachinery.timestamps import format_time, parse_time
from kone.controllers.device_taints import (
    CONDITION,
    DEVICE_TAINT_EVICTION_CONTROLLER,
    Eviction,
    condition_of,
    eviction_of,
    published,
)
from tests.controllers.world import World

DRIVER = "gpu.example.com"
AT_100 = format_time(100)


def taint(effect: str = "NoExecute", added: str = AT_100) -> Object:
    return {"key": "broken", "effect": effect, "timeAdded": added}


def offered(*taints: Object, generation: int = 1) -> Object:
    pool = {"name": "p", "generation": generation, "resourceSliceCount": 1}
    devices = [{"name": "d", "taints": list(taints)}]
    return {"metadata": {"name": f"s{generation}"}, "spec": {"driver": DRIVER, "pool": pool, "devices": devices}}


def rule(effect: str = "NoExecute", added: str = AT_100, **selector: str) -> Object:
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "DeviceTaintRule",
        "metadata": {"name": "r", "uid": "uid-r", "generation": 1},
        "spec": {"deviceSelector": selector or {"driver": DRIVER}, "taint": taint(effect, added)},
    }


def claim(*tolerations: Object) -> Object:
    result = {"request": "r", "driver": DRIVER, "pool": "p", "device": "d", "tolerations": list(tolerations)}
    status = {
        "allocation": {"devices": {"results": [result]}},
        "reservedFor": [{"resource": "pods", "name": "p", "uid": "uid-p"}],
    }
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {"name": "c", "namespace": "ns", "uid": "uid-c"},
        "status": status,
    }


def pod() -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": "ns", "uid": "uid-p"},
        "spec": {"nodeName": "n", "resourceClaims": [{"name": "dev", "resourceClaimName": "c"}]},
    }


def tolerating(seconds: int | None = None, **more: Any) -> Object:
    found: Object = {"operator": "Exists", "effect": "NoExecute", **more}
    return found if seconds is None else {**found, "tolerationSeconds": seconds}


OURS = frozenset({"uid-r"})


@pytest.mark.parametrize(
    ("slices", "rules", "tolerations", "expected"),
    [
        pytest.param([offered()], [], [], None, id="no taint"),
        pytest.param([offered(taint())], [], [], Eviction(100, frozenset()), id="the device's own"),
        pytest.param([offered(taint("NoSchedule"))], [rule("None")], [], None, id="other effects"),
        pytest.param([offered(taint())], [], [tolerating()], None, id="tolerated for ever"),
        pytest.param([offered(taint())], [], [tolerating(60)], Eviction(160, frozenset()), id="tolerated for 60 s"),
        pytest.param(
            [offered(taint())], [], [tolerating(60), tolerating(30)], Eviction(130, frozenset()), id="shorter"
        ),
        pytest.param([offered(taint())], [], [tolerating(key="other")], Eviction(100, frozenset()), id="another taint"),
        pytest.param([], [rule()], [], Eviction(100, OURS), id="a rule, of a device that is not published any more"),
        pytest.param([], [rule(driver=DRIVER, device="e")], [], None, id="a rule for another device"),
        pytest.param([offered(taint()), offered(generation=2)], [], [], None, id="an older generation"),
        pytest.param(
            [offered({**taint(), "key": "slow"})],
            [rule(added=format_time(130))],
            [tolerating(60, key="slow")],
            Eviction(130, OURS),
            id="the earlier of two",
        ),
    ],
)
def test_when_a_pod_has_to_go(
    slices: list[Object], rules: list[Object], tolerations: list[Object], expected: Eviction | None
) -> None:
    assert eviction_of([claim(*tolerations)], published(slices), rules) == expected


@pytest.mark.parametrize(
    ("effect", "pods", "evicted", "status", "reason", "message"),
    [
        ("NoExecute", 0, 0, "False", "NotStarted", ""),
        ("NoExecute", 1, 0, "True", "PodsPendingEviction", "1 pod needs to be evicted in 1 namespace."),
        (
            "NoExecute",
            2,
            1,
            "True",
            "PodsPendingEviction",
            "2 pods need to be evicted in 2 different namespaces. 1 pod evicted since starting the controller.",
        ),
        ("NoExecute", 0, 2, "False", "Completed", "2 pods evicted since starting the controller."),
        ("NoSchedule", 0, 0, "False", "OtherEffect", "Eviction only happens for the NoExecute effect."),
        (
            "None",
            1,
            0,
            "False",
            "NoEffect",
            "3 published devices selected. 1 allocated device selected. 1 pod would be evicted in 1 namespace if the "
            "effect was NoExecute. This information will not be updated again. Recreate the DeviceTaintRule to trigger "
            "an update.",
        ),
    ],
)
def test_what_a_rule_says(effect: str, pods: int, evicted: int, status: str, reason: str, message: str) -> None:
    pending = [{"metadata": {"name": "p", "namespace": f"ns{number}"}} for number in range(pods)]
    found = condition_of(rule(effect), pending, evicted, (3, 1))
    assert (found["status"], found["reason"], found["message"]) == (status, reason, message)


def now(clock: FakeClock) -> str:
    return format_time(clock.now())


async def test_a_pod_goes_when_its_device_is_tainted(world: World) -> None:
    world.client.put(RESOURCESLICES, offered())
    world.client.put(RESOURCECLAIMS, claim())
    made = world.client.put(PODS, pod())
    async with world.running(DEVICE_TAINT_EVICTION_CONTROLLER):
        assert not is_deleting(world.client.look(PODS, made))
        ordered = await world.put(DEVICETAINTRULES, rule(added=now(world.clock)))
        gone = world.client.look(PODS, made)
        assert is_deleting(gone)
        found = find_condition(gone, "DisruptionTarget") or {}
        assert (found["reason"], found["message"]) == (
            "DeletionByDeviceTaintManager",
            "Device Taint manager: deleting due to NoExecute taint",
        )
        assert await world.events("DeviceTaintManagerEviction") == [
            ("Normal", "DeviceTaintManagerEviction", "Marking for deletion")
        ]
        await world.client.delete(PODS, "p", namespace="ns", grace_s=0)
        await world.advance(30)
        told = find_condition(world.client.look(DEVICETAINTRULES, ordered), CONDITION) or {}
        assert (told["status"], told["reason"]) == ("False", "Completed")


async def test_a_pod_that_tolerates_it_goes_later_and_stays_where_the_taint_is_taken_back(world: World) -> None:
    world.client.put(RESOURCESLICES, offered())
    world.client.put(RESOURCECLAIMS, claim(tolerating(60)))
    made = world.client.put(PODS, pod())
    async with world.running(DEVICE_TAINT_EVICTION_CONTROLLER):
        ordered = await world.put(DEVICETAINTRULES, rule(added=now(world.clock)))
        await world.advance(50)
        told = find_condition(world.client.look(DEVICETAINTRULES, ordered), CONDITION) or {}
        assert told["message"] == "1 pod needs to be evicted in 1 namespace."
        await world.client.delete(DEVICETAINTRULES, "r")
        await world.advance(50)
        assert not is_deleting(world.client.look(PODS, made))
        assert ("Normal", "DeviceTaintManagerEviction", "Cancelling deletion") in await world.events()
        again = await world.put(DEVICETAINTRULES, rule(added=now(world.clock)))
        await world.advance(59)
        assert not is_deleting(world.client.look(PODS, made))
        await world.advance(2)
        assert is_deleting(world.client.look(PODS, made))
        assert parse_time(again["spec"]["taint"]["timeAdded"]) + 60 <= world.clock.now()
