"""The plugins that are on by choice."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from kone.admission import event_rate_limit, pod_node_selector
from kone.admission import pod_toleration_restriction as restriction
from kone.admission.always import AlwaysDeny
from kone.admission.always_pull_images import AlwaysPullImages
from kone.admission.deny_service_external_ips import DenyServiceExternalIPs
from kone.admission.event_rate_limit import EventRateLimit, Limit
from kone.admission.extended_resource_toleration import ExtendedResourceToleration
from kone.admission.limit_pod_hard_anti_affinity_topology import LimitPodHardAntiAffinityTopology
from kone.admission.namespace_presence import NamespaceAutoProvision, NamespaceExists
from kone.admission.owner_references_permission_enforcement import OwnerReferencesPermissionEnforcement
from kone.admission.pod_node_selector import PodNodeSelector
from kone.admission.pod_toleration_restriction import PodTolerationRestriction, Restriction
from kone.aio.clock import FakeClock
from kone.apimachinery.access import AccessRequest
from kone.apimachinery.config_files import ConfigFileError
from kone.apimachinery.errors import StatusError, already_exists
from kone.apimachinery.kinds import CONFIGMAPS, EVENTS, NAMESPACES, PODS, SERVICES
from kone.apimachinery.objects import Object
from kone.apimachinery.users import User
from kone.auth import x509_checks
from kone.registry.registry import builtin
from tests.admission.support import ANN, admit, pod, refusal, write
from tests.memory_caches import MemoryCaches


@pytest.fixture
def caches() -> MemoryCaches:
    return MemoryCaches()


def put_namespace(caches: MemoryCaches, name: str = "ns", **annotations: str) -> None:
    meta = {"name": name, "annotations": {f"scheduler.alpha.kubernetes.io/{k}": v for k, v in annotations.items()}}
    caches.put(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": meta})


# -- pods ------------------------------------------------------------------------------------------------------------


async def test_always_pull_images_sets_every_policy() -> None:
    p = pod(
        containers=[{"name": "c", "image": "i", "imagePullPolicy": "Never"}],
        initContainers=[{"name": "i", "image": "i"}],
        volumes=[{"name": "v", "image": {"reference": "r", "pullPolicy": "IfNotPresent"}}, {"name": "e"}],
    )
    spec = (await admit(AlwaysPullImages(), write("CREATE", p))).object["spec"]
    assert spec["containers"][0]["imagePullPolicy"] == spec["initContainers"][0]["imagePullPolicy"] == "Always"
    assert spec["volumes"][0]["image"]["pullPolicy"] == "Always"


async def test_always_pull_images_leaves_updates_without_a_new_image() -> None:
    old = pod(containers=[{"name": "c", "image": "i", "imagePullPolicy": "Never"}])
    new = pod(containers=[{"name": "c", "image": "i", "imagePullPolicy": "Never"}])
    await admit(AlwaysPullImages(), write("UPDATE", new, old=old))
    assert new["spec"]["containers"][0]["imagePullPolicy"] == "Never"


async def test_always_pull_images_refuses_what_somebody_changed_back() -> None:
    p = pod(containers=[{"name": "c", "image": "i", "imagePullPolicy": "Never"}])
    with pytest.raises(StatusError) as caught:
        await AlwaysPullImages().validate(write("CREATE", p))
    assert str(caught.value) == (
        'pods "p" is forbidden: spec.containers[0].imagePullPolicy: Unsupported value: "Never": '
        'supported values: "Always"'
    )


async def test_anti_affinity_is_for_nodes_only() -> None:
    term = {"topologyKey": "topology.kubernetes.io/zone", "labelSelector": {}}
    rule = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    error = await refusal(LimitPodHardAntiAffinityTopology(), write("CREATE", pod(affinity=rule)))
    assert str(error) == (
        'pods "p" is forbidden: affinity.PodAntiAffinity.RequiredDuringScheduling has TopologyKey '
        "topology.kubernetes.io/zone but only key kubernetes.io/hostname is allowed"
    )
    term["topologyKey"] = "kubernetes.io/hostname"
    await admit(LimitPodHardAntiAffinityTopology(), write("CREATE", pod(affinity=rule)))


async def test_who_asks_for_a_device_tolerates_its_taint() -> None:
    requests = {"cpu": "1", "example.com/b": "1", "example.com/a": "1"}
    wanted = [{"key": f"example.com/{x}", "operator": "Exists", "effect": "NoSchedule"} for x in "ab"]
    p = pod(containers=[{"name": "c", "image": "i", "resources": {"requests": requests}}])
    assert (await admit(ExtendedResourceToleration(), write("CREATE", p))).object["spec"]["tolerations"] == wanted
    again = pod(containers=p["spec"]["containers"], tolerations=wanted[:1])
    assert (await admit(ExtendedResourceToleration(), write("CREATE", again))).object["spec"]["tolerations"] == wanted


@pytest.mark.parametrize(
    ("annotation", "cluster", "own", "merged"),
    [
        (None, {}, {}, None),
        ("a=b", {"clusterDefaultNodeSelector": "c=d"}, {}, {"a": "b"}),
        (None, {"clusterDefaultNodeSelector": "c=d"}, {"e": "f"}, {"c": "d", "e": "f"}),
        ("", {"clusterDefaultNodeSelector": "c=d"}, {}, None),
        ("a=b", {"ns": "a=b,e=f"}, {"e": "f"}, {"a": "b", "e": "f"}),
    ],
)
async def test_a_namespaces_node_selector_is_added(
    caches: MemoryCaches, annotation: str | None, cluster: dict[str, str], own: dict[str, str], merged: object
) -> None:
    put_namespace(caches, **({} if annotation is None else {"node-selector": annotation}))
    p = pod(nodeSelector=own) if own else pod()
    a = await admit(PodNodeSelector(caches, cluster), write("CREATE", p))
    assert a.object["spec"].get("nodeSelector") == merged


@pytest.mark.parametrize(
    ("annotation", "cluster", "text"),
    [
        ("a=c", {}, "pod node label selector conflicts with its namespace node label selector"),
        (None, {"ns": "e=f"}, "pod node label selector labels conflict with its namespace whitelist"),
    ],
)
async def test_a_pod_keeps_to_its_namespaces_nodes(
    caches: MemoryCaches, annotation: str | None, cluster: dict[str, str], text: str
) -> None:
    put_namespace(caches, **({} if annotation is None else {"node-selector": annotation}))
    error = await refusal(PodNodeSelector(caches, cluster), write("CREATE", pod(nodeSelector={"a": "b"})))
    assert str(error) == f'pods "p" is forbidden: {text}'


def test_a_node_selector_that_is_none_is_told() -> None:
    with pytest.raises(StatusError) as caught:
        pod_node_selector.labels_map("a=b,c")
    assert (caught.value.code, str(caught.value)) == (500, "invalid selector: [c]")


GPU = {"key": "gpu", "operator": "Exists"}
GPU_EFFECT = {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}
SSD = {"key": "disk", "operator": "Equal", "value": "ssd"}


@pytest.mark.parametrize(
    ("first", "second", "merged"),
    [
        ([], [GPU], [GPU]),
        ([GPU], [GPU], [GPU]),
        ([GPU], [GPU_EFFECT], [GPU]),
        ([GPU_EFFECT], [GPU], [GPU]),
        ([SSD], [{"operator": "Exists"}], [{"operator": "Exists"}]),
        ([SSD], [{"key": "disk", "operator": "Exists"}, GPU], [{"key": "disk", "operator": "Exists"}, GPU]),
        (
            [{"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 10}],
            [{"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 20}],
            [{"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 20}],
        ),
    ],
)
def test_of_two_tolerations_the_wider_stays(first: list[Object], second: list[Object], merged: list[Object]) -> None:
    assert restriction.merge(first, second) == merged


async def test_a_namespace_gives_its_pods_tolerations(caches: MemoryCaches) -> None:
    put_namespace(caches, defaultTolerations=json.dumps([GPU]))
    a = await admit(PodTolerationRestriction(caches, Restriction(default=[SSD])), write("CREATE", pod()))
    assert a.object["spec"]["tolerations"] == [GPU]


async def test_the_cluster_gives_tolerations_where_the_namespace_says_nothing(caches: MemoryCaches) -> None:
    put_namespace(caches)
    plugin = PodTolerationRestriction(caches, Restriction(default=[SSD]))
    assert (await admit(plugin, write("CREATE", pod()))).object["spec"]["tolerations"] == [SSD]
    put_namespace(caches, defaultTolerations="")
    assert "tolerations" not in (await admit(plugin, write("CREATE", pod()))).object["spec"]


async def test_what_is_not_best_effort_tolerates_memory_pressure(caches: MemoryCaches) -> None:
    put_namespace(caches)
    p = pod(containers=[{"name": "c", "image": "i", "resources": {"requests": {"cpu": "1"}}}])
    a = await admit(PodTolerationRestriction(caches, Restriction()), write("CREATE", p))
    assert a.object["spec"]["tolerations"] == [restriction.MEMORY_PRESSURE]


@pytest.mark.parametrize(
    ("annotations", "cluster", "scope"),
    [({"tolerationsWhitelist": json.dumps([SSD])}, [GPU], "namespace"), ({}, [SSD], "cluster")],
)
async def test_tolerations_beyond_the_whitelist_are_refused(
    caches: MemoryCaches, annotations: dict[str, str], cluster: list[Object], scope: str
) -> None:
    put_namespace(caches, **annotations)
    plugin = PodTolerationRestriction(caches, Restriction(whitelist=cluster))
    error = await refusal(plugin, write("CREATE", pod(tolerations=[GPU])))
    assert str(error) == (
        f"pod tolerations (possibly merged with namespace default tolerations) conflict with its {scope} whitelist"
    )
    await admit(plugin, write("CREATE", pod(tolerations=[SSD])))


def test_a_wrong_toleration_in_the_file_is_told() -> None:
    text = """{apiVersion: podtolerationrestriction.admission.k8s.io/v1alpha1, kind: Configuration,
               default: [{key: a, operator: Sometimes}]}"""
    with pytest.raises(ConfigFileError, match=r"default\[0\]\.operator: Unsupported value"):
        restriction.parse(text)


# -- events ----------------------------------------------------------------------------------------------------------


def event(name: str = "e", namespace: str = "ns") -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": {"kind": "Pod", "namespace": namespace, "name": name, "uid": "u", "apiVersion": "v1"},
        "source": {"component": "kubelet", "host": "h"},
    }


async def test_a_bucket_of_events_empties_and_fills_again() -> None:
    clock = FakeClock()
    plugin = EventRateLimit([Limit("Server", qps=1, burst=2)], clock)
    for _ in range(2):
        await admit(plugin, write("CREATE", event(), EVENTS))
    error = await refusal(plugin, write("CREATE", event(), EVENTS))
    assert (error.code, error.reason) == (429, "TooManyRequests")
    assert str(error) == "Too many requests: limit reached on type Server for key "
    await clock.advance(1.0)
    await admit(plugin, write("CREATE", event(), EVENTS))


@pytest.mark.parametrize(
    ("kind", "other", "key"),
    [
        ("Namespace", {"namespace": "other"}, "ns"),
        ("User", {"user": User("bob")}, "ann"),
        ("SourceAndObject", {"name": "f"}, "kubelethPodnseuv1"),
    ],
)
async def test_each_has_a_bucket_of_its_own(kind: str, other: dict[str, Any], key: str) -> None:
    plugin = EventRateLimit([Limit(kind, qps=1, burst=1)], FakeClock())

    def a(name: str = "e", namespace: str = "ns", user: User = ANN) -> Any:
        return write("CREATE", event(name, namespace), EVENTS, namespace=namespace, user=user)

    await admit(plugin, a())
    await admit(plugin, a(**other))
    assert str(await refusal(plugin, a())).endswith(f"limit reached on type {kind} for key {key}")


async def test_a_dry_run_and_events_of_the_other_group_are_not_counted() -> None:
    plugin = EventRateLimit([Limit("Server", qps=1, burst=1)], FakeClock())
    for _ in range(3):
        await admit(plugin, dataclasses.replace(write("CREATE", event(), EVENTS), dry_run=True))
        others = EVENTS._replace(group="events.k8s.io")
        await admit(plugin, write("CREATE", event(), others))
    await admit(plugin, write("CREATE", event(), EVENTS))


async def test_the_bucket_that_was_asked_longest_ago_makes_room() -> None:
    plugin = EventRateLimit([Limit("Namespace", qps=1, burst=1, cache_size=1)], FakeClock())
    await admit(plugin, write("CREATE", event(), EVENTS, namespace="a"))
    await admit(plugin, write("CREATE", event(), EVENTS, namespace="b"))
    await admit(plugin, write("CREATE", event(), EVENTS, namespace="a"))


def test_wrong_limits_are_told() -> None:
    text = """{apiVersion: eventratelimit.admission.k8s.io/v1alpha1, kind: Configuration,
               limits: [{type: Planet, qps: 0, burst: 1}, {type: User, qps: 1, burst: 1, cacheSize: -1}]}"""
    with pytest.raises(ConfigFileError) as caught:
        event_rate_limit.parse(text)
    assert str(caught.value) == (
        '[limits[0].type: Unsupported value: "Planet": supported values: "Server", "Namespace", "User", '
        '"SourceAndObject", limits[0].qps: Invalid value: 0: must be positive, '
        "limits[1].cacheSize: Invalid value: -1: must not be negative]"
    )


# -- owners ----------------------------------------------------------------------------------------------------------


class Rights:
    """May do what is listed as (verb, resource/subresource, name)."""

    def __init__(self, *rights: tuple[str, str, str]) -> None:
        self.rights = rights

    @property
    def escalation(self) -> Any:
        raise AssertionError("nobody asks")

    def allowed(self, user: User, request: AccessRequest) -> tuple[bool, str]:
        return (request.verb, request.combined_resource, request.name) in self.rights, "no"


def owned(blocks: bool = False, kind: str = "Deployment") -> Object:
    owner: Object = {"apiVersion": "apps/v1", "kind": kind, "name": "d", "uid": "u"}
    if blocks:
        owner["blockOwnerDeletion"] = True
    meta = {"name": "m", "namespace": "ns", "ownerReferences": [owner]}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta}


BARE: Object = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "namespace": "ns"}}
DELETE = ("delete", "configmaps", "m")
FINALIZE = ("update", "deployments/finalizers", "d")


@pytest.mark.parametrize(
    ("new", "old", "rights", "why"),
    [
        (owned(), None, [], ""),
        (owned(), BARE, [], "cannot set an ownerRef on a resource you can't delete: no, <nil>"),
        (owned(), BARE, [DELETE], ""),
        (owned(), owned(), [], ""),
        (
            owned(blocks=True),
            None,
            [],
            "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on: "
            "no, <nil>",
        ),
        (owned(blocks=True), None, [FINALIZE], ""),
        (owned(blocks=True), None, [("update", "*/finalizers", "*")], ""),
        (owned(blocks=True), owned(), [DELETE, FINALIZE], ""),
        (
            owned(blocks=True, kind="Nonsense"),
            None,
            [],
            "cannot set blockOwnerDeletion in this case because cannot find RESTMapping for APIVersion apps/v1 Kind "
            'Nonsense: no matches for kind "Nonsense" in version "apps/v1"',
        ),
    ],
)
async def test_who_may_name_an_owner(
    new: Object, old: Object | None, rights: list[tuple[str, str, str]], why: str
) -> None:
    plugin = OwnerReferencesPermissionEnforcement(Rights(*rights), builtin(x509_checks))
    a = write("UPDATE" if old else "CREATE", new, CONFIGMAPS, old=old)
    if not why:
        await admit(plugin, a)
    else:
        assert str(await refusal(plugin, a)) == f'configmaps "m" is forbidden: {why}'


# -- the rest --------------------------------------------------------------------------------------------------------


async def test_a_missing_namespace_refuses_every_write(caches: MemoryCaches) -> None:
    error = await refusal(NamespaceExists(caches), write("UPDATE", pod(), old=pod()))
    assert str(error) == 'namespaces "ns" not found'
    put_namespace(caches)
    await admit(NamespaceExists(caches), write("UPDATE", pod(), old=pod()))


async def test_a_missing_namespace_is_made(caches: MemoryCaches) -> None:
    made: list[str] = []

    async def make(name: str) -> None:
        made.append(name)
        if len(made) > 1:
            raise already_exists("namespaces", name)

    plugin = NamespaceAutoProvision(caches, make)
    await admit(plugin, write("CREATE", pod()))
    await admit(plugin, write("CREATE", pod()))
    await admit(plugin, dataclasses.replace(write("CREATE", pod()), dry_run=True))
    put_namespace(caches)
    await admit(plugin, write("CREATE", pod()))
    assert made == ["ns", "ns"]


async def test_new_external_ips_are_refused() -> None:
    def service(*ips: str) -> Object:
        meta = {"name": "s", "namespace": "ns"}
        return {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"externalIPs": list(ips)}}

    plugin = DenyServiceExternalIPs()
    error = await refusal(plugin, write("CREATE", service("1.2.3.4"), SERVICES))
    assert str(error) == 'services "s" is forbidden: Use of external IPs is denied by admission control'
    await admit(plugin, write("UPDATE", service("1.2.3.4"), SERVICES, old=service("1.2.3.4", "5.6.7.8")))
    await refusal(plugin, write("UPDATE", service("9.9.9.9"), SERVICES, old=service("1.2.3.4")))


async def test_always_deny_denies() -> None:
    error = await refusal(AlwaysDeny(), write("DELETE", None, PODS, old=pod()))
    assert str(error) == 'pods "p" is forbidden: admission control is denying all modifications'
