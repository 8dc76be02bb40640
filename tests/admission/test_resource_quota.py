"""What a namespace's quotas refuse, in upstream's words, also when writes come faster than they are committed."""

from __future__ import annotations

from typing import Any

import pytest

from kone.admission.resource_quota import PENDING_S, ResourceQuota
from kone.aio.clock import FakeClock
from kone.apimachinery.kinds import (
    CONFIGMAPS,
    DEPLOYMENTS,
    EVENTS,
    GVR,
    PERSISTENTVOLUMECLAIMS,
    PODS,
    SERVICES,
)
from kone.apimachinery.objects import Object, replace_in
from tests.admission.support import admit, pod, refusal, write
from tests.memory_caches import MemoryCaches


class World:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.caches = MemoryCaches()
        self.plugin = ResourceQuota(self.caches, self.clock)
        self._versions = 0

    def quota(self, name: str = "q", scopes: list[str] | None = None, **hard: str) -> None:
        spec: Object = {"hard": {key.replace("__", "/").replace("_", "."): value for key, value in hard.items()}}
        if scopes:
            spec["scopes"] = scopes
        self.caches.of("", "resourcequotas").put({"metadata": {"name": name, "namespace": "ns"}, "spec": spec})

    def committed(self, obj: Object, resource: GVR = PODS) -> Object:
        self._versions += 1
        meta = {"uid": f"uid-{obj['metadata']['name']}", **obj["metadata"], "resourceVersion": str(self._versions)}
        stored = {**obj, "metadata": meta}
        self.caches.of(resource.group, resource.resource).put(stored)
        return stored

    async def create(self, obj: Object, resource: GVR = PODS) -> None:
        await admit(self.plugin, write("CREATE", obj, resource))

    async def why(self, obj: Object, resource: GVR = PODS, **more: Any) -> str:
        operation = "UPDATE" if "old" in more else "CREATE"
        return (await refusal(self.plugin, write(operation, obj, resource, **more))).message


@pytest.fixture
def world() -> World:
    return World()


def sized(name: str = "p", cpu: str = "100m", **limits: str) -> Object:
    resources = {"requests": {"cpu": cpu, "memory": "64Mi"}, "limits": limits}
    return pod(name, containers=[{"name": "c", "image": "i", "resources": resources}])


def thing(name: str, **more: Any) -> Object:
    return {"metadata": {"name": name, "namespace": "ns"}, **more}


async def test_too_many_pods(world: World) -> None:
    world.quota(pods="1")
    world.committed(pod("a"))
    assert await world.why(pod("b")) == (
        'pods "b" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1'
    )


async def test_finished_pods_cost_nothing_but_are_still_counted(world: World) -> None:
    world.quota(pods="1")
    world.committed({**pod("a"), "status": {"phase": "Succeeded"}})
    await world.create(pod("b"))
    world.quota("objects", count__pods="1")
    assert "exceeded quota: objects, requested: count/pods=1" in await world.why(pod("c"))


async def test_sums_are_told_in_the_notation_of_the_pods(world: World) -> None:
    world.quota(requests_cpu="1", requests_memory="100Mi")
    world.committed(sized("a", cpu="700m"))
    assert (await world.why(sized("b", cpu="500m"))).endswith(
        "exceeded quota: q, requested: requests.cpu=500m,requests.memory=64Mi, "
        "used: requests.cpu=700m,requests.memory=64Mi, limited: requests.cpu=1,requests.memory=100Mi"
    )


async def test_what_a_quota_bounds_must_be_asked_for(world: World) -> None:
    world.quota(limits_cpu="1", memory="1Gi", pods="5")
    two = [{"name": "b", "image": "i"}, {"name": "a", "image": "i", "resources": {"limits": {"cpu": "1"}}}]
    assert await world.why(pod(containers=two)) == (
        'pods "p" is forbidden: failed quota: q: must specify limits.cpu for: b; memory for: a,b'
    )
    resources = {"requests": {"memory": "1Mi"}, "limits": {"cpu": "100m"}}
    await world.create(pod(containers=two, resources=resources))


@pytest.mark.parametrize(
    ("scope", "inside", "outside"),
    [
        ("BestEffort", pod(), sized()),
        ("NotBestEffort", sized(), pod()),
        ("Terminating", pod(activeDeadlineSeconds=5), pod()),
        ("NotTerminating", pod(), pod(activeDeadlineSeconds=5)),
        ("PriorityClass", pod(priorityClassName="high"), pod()),
    ],
)
async def test_a_scope_narrows_a_quota(world: World, scope: str, inside: Object, outside: Object) -> None:
    world.quota(scopes=[scope], pods="0")
    await world.create(outside)
    assert "exceeded quota" in await world.why(inside)


async def test_a_pod_that_comes_into_scope_is_charged(world: World) -> None:
    world.quota(scopes=["Terminating"], pods="0")
    old = world.committed(pod())
    new = replace_in(old, ("spec", "activeDeadlineSeconds"), 5)
    assert "exceeded quota" in await world.why(new, old=old)
    await admit(world.plugin, write("UPDATE", replace_in(old, ("metadata", "labels"), {"a": "b"}), old=old))


async def test_a_resize_is_charged_by_what_it_adds(world: World) -> None:
    world.quota(requests_cpu="1")
    old = world.committed(sized(cpu="600m"))
    await admit(world.plugin, write("UPDATE", sized(cpu="1"), old=old, subresource="resize"))
    assert "requested: requests.cpu=600m, used: requests.cpu=1," in await world.why(
        sized(cpu="1200m"), old=old, subresource="resize"
    )


async def test_objects_of_any_kind(world: World) -> None:
    world.quota(count__deployments_apps="1", configmaps="1")
    await world.create(thing("a"), DEPLOYMENTS)
    await world.create(thing("a"), CONFIGMAPS)
    world.committed(thing("a"), DEPLOYMENTS)
    world.committed(thing("a"), CONFIGMAPS)
    assert (await world.why(thing("b"), DEPLOYMENTS)).endswith(
        "requested: count/deployments.apps=1, used: count/deployments.apps=1, limited: count/deployments.apps=1"
    )
    assert "requested: configmaps=1" in await world.why(thing("b"), CONFIGMAPS)
    await world.create(thing("e"), EVENTS)


async def test_services_that_become_dearer(world: World) -> None:
    world.quota(services_nodeports="1", services="5")
    old = world.committed(thing("s", spec={"type": "ClusterIP", "ports": [{"port": 1}, {"port": 2}]}), SERVICES)
    new = replace_in(old, ("spec", "type"), "NodePort")
    assert (await world.why(new, SERVICES, old=old)).endswith(
        "requested: services.nodeports=2, used: services.nodeports=0, limited: services.nodeports=1"
    )


async def test_storage_by_class(world: World) -> None:
    world.quota(gold_storageclass_storage_k8s_io__requests_storage="2Gi")

    def claim(name: str, storage_class: str) -> Object:
        spec = {"resources": {"requests": {"storage": "3Gi"}}, "storageClassName": storage_class}
        return thing(name, spec=spec)

    await world.create(claim("a", "silver"), PERSISTENTVOLUMECLAIMS)
    assert "gold.storageclass.storage.k8s.io/requests.storage=3Gi" in await world.why(
        claim("b", "gold"), PERSISTENTVOLUMECLAIMS
    )


async def test_two_writes_at_once_cannot_both_take_the_last_place(world: World) -> None:
    world.quota(pods="1")
    await world.create(pod("a"))
    assert "used: pods=1" in await world.why(pod("b"))
    await world.clock.advance(PENDING_S + 1)  # the first was never committed
    await world.create(pod("b"))


async def test_what_was_pending_counts_once_when_it_is_committed(world: World) -> None:
    world.quota(pods="2")
    await world.create(pod("a"))
    world.committed(pod("a"))
    await world.create(pod("b"))


async def test_an_update_that_is_pending_counts_as_it_will_be(world: World) -> None:
    world.quota(requests_cpu="2")
    old = world.committed(sized("a", cpu="500m"))
    await world.create(sized("b", cpu="500m"))  # the cost of a is known by now
    new = {**sized("a", cpu="1500m"), "metadata": old["metadata"]}
    await admit(world.plugin, write("UPDATE", new, old=old, subresource="resize"))
    assert "used: requests.cpu=2," in await world.why(sized("c"))


async def test_a_dry_run_takes_no_place(world: World) -> None:
    world.quota(pods="1")
    attempt = write("CREATE", pod("a"))
    attempt.dry_run = True
    await admit(world.plugin, attempt)
    await world.create(pod("b"))


async def test_other_namespaces_are_free(world: World) -> None:
    world.quota(pods="0")
    await admit(world.plugin, write("CREATE", pod(namespace="other"), namespace="other"))
