"""Quotas: what pods, services and claims cost, and the scopes that narrow a quota."""

from typing import Any

import pytest

from kone.apimachinery.kinds import GVR, PERSISTENTVOLUMECLAIMS, PODS, RESOURCECLAIMS, SERVICES
from kone.apimachinery.objects import Object
from kone.apimachinery.quota import counts, evaluator_of, texts, total

NOW = 1_700_000_000.0


def container(requests: Object | None = None, limits: Object | None = None) -> Object:
    return {"name": "c", "image": "i", "resources": {"requests": requests or {}, "limits": limits or {}}}


def pod(*containers: Object, phase: str = "Running", **spec: Any) -> Object:
    meta = {"name": "p", "namespace": "shop"}
    return {"metadata": meta, "spec": {"containers": list(containers), **spec}, "status": {"phase": phase}}


def cost(resource: GVR, obj: Object) -> dict[str, str]:
    return texts(evaluator_of(resource).usage(obj, NOW))


def test_a_pod_costs_its_requests_and_limits() -> None:
    asked = {"cpu": "500m", "memory": "64Mi", "ephemeral-storage": "1Gi", "hugepages-2Mi": "4Mi", "x.io/gpu": "2"}
    assert cost(PODS, pod(container(asked, {"cpu": "1"}), container({"cpu": "500m"}))) == {
        "count/pods": "1",
        "pods": "1",
        "cpu": "1",
        "requests.cpu": "1",
        "limits.cpu": "1",
        "memory": "64Mi",
        "requests.memory": "64Mi",
        "ephemeral-storage": "1Gi",
        "requests.ephemeral-storage": "1Gi",
        "hugepages-2Mi": "4Mi",
        "requests.hugepages-2Mi": "4Mi",
        "requests.x.io/gpu": "2",
    }


def test_overhead_is_charged_where_something_is_limited() -> None:
    found = cost(PODS, pod(container({"cpu": "1"}, {"cpu": "2"}), overhead={"cpu": "250m", "memory": "1Mi"}))
    assert (found["requests.cpu"], found["limits.cpu"], found.get("limits.memory")) == ("1250m", "2250m", None)


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_finished_pod_is_an_object_only(phase: str) -> None:
    assert cost(PODS, pod(container({"cpu": "1"}), phase=phase)) == {"count/pods": "1"}


def test_a_pod_stuck_after_its_grace_is_an_object_only() -> None:
    stuck = pod(container({"cpu": "1"}))
    stuck["metadata"] |= {"deletionTimestamp": "2023-11-14T22:13:00Z", "deletionGracePeriodSeconds": 10}
    assert cost(PODS, stuck) == {"count/pods": "1"}
    stuck["metadata"]["deletionGracePeriodSeconds"] = 30
    assert cost(PODS, stuck)["pods"] == "1"


@pytest.mark.parametrize(
    ("spec", "node_ports", "balancers"),
    [
        ({"type": "ClusterIP", "ports": [{}]}, "0", "0"),
        ({"type": "NodePort", "ports": [{}, {}]}, "2", "0"),
        ({"type": "LoadBalancer", "ports": [{}, {}]}, "2", "1"),
        ({"type": "LoadBalancer", "ports": [{"nodePort": 1}, {}], "allocateLoadBalancerNodePorts": False}, "1", "1"),
    ],
)
def test_what_a_service_costs(spec: Object, node_ports: str, balancers: str) -> None:
    assert cost(SERVICES, {"spec": spec}) == {
        "count/services": "1",
        "services": "1",
        "services.nodeports": node_ports,
        "services.loadbalancers": balancers,
    }


def test_what_a_claim_costs_also_by_its_class() -> None:
    claim = {"spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "1500m"}}}}
    assert cost(PERSISTENTVOLUMECLAIMS, claim) == {
        "count/persistentvolumeclaims": "1",
        "persistentvolumeclaims": "1",
        "requests.storage": "2",
        "gold.storageclass.storage.k8s.io/persistentvolumeclaims": "1",
        "gold.storageclass.storage.k8s.io/requests.storage": "2",
    }
    grown = {"spec": claim["spec"], "status": {"allocatedResources": {"storage": "5Gi"}}}
    assert cost(PERSISTENTVOLUMECLAIMS, grown)["requests.storage"] == "5Gi"


def test_what_a_claim_of_devices_costs_by_class() -> None:
    """Of alternatives only one is given: of each class the dearest counts."""
    exactly = {"deviceClassName": "gold", "allocationMode": "ExactCount", "count": 2}
    alternatives = [exactly, {**exactly, "count": 5}, {"deviceClassName": "tin", "allocationMode": "All"}]
    requests = [{"name": "a", "exactly": exactly}, {"name": "b", "firstAvailable": alternatives}]
    assert cost(RESOURCECLAIMS, {"spec": {"devices": {"requests": requests}}}) == {
        "count/resourceclaims.resource.k8s.io": "1",
        "gold.deviceclass.resource.k8s.io/devices": "7",
        "tin.deviceclass.resource.k8s.io/devices": "32",
    }


def test_other_objects_are_counted() -> None:
    assert cost(GVR("", "v1", "secrets"), {}) == {"count/secrets": "1", "secrets": "1"}
    assert cost(GVR("apps", "v1", "deployments"), {}) == {"count/deployments.apps": "1"}


@pytest.mark.parametrize(
    ("resource", "names", "matching"),
    [
        (PODS, ["pods", "services", "requests.x.io/gpu", "requests.cpu", "requests.foo"], [0, 2, 3]),
        (PODS, ["hugepages-1Gi", "requests.hugepages-1Gi", "requests.storage"], [0, 1]),
        (SERVICES, ["count/services", "services", "pods"], [0, 1]),
        (PERSISTENTVOLUMECLAIMS, ["a.storageclass.storage.k8s.io/requests.storage", "requests.storage", "x"], [0, 1]),
        (
            RESOURCECLAIMS,
            ["a.deviceclass.resource.k8s.io/devices", "count/resourceclaims.resource.k8s.io", "x"],
            [0, 1],
        ),
        (GVR("", "v1", "configmaps"), ["configmaps", "count/configmaps", "count/configmaps.x"], [0, 1]),
    ],
)
def test_which_names_a_resource_counts_against(resource: GVR, names: list[str], matching: list[int]) -> None:
    assert evaluator_of(resource).matching(names) == [names[i] for i in matching]


def scoped(*scopes: str, **selector: Any) -> Object:
    spec: Object = {"hard": {"pods": "1"}, "scopes": list(scopes)}
    return {"spec": spec | ({"scopeSelector": {"matchExpressions": [selector]}} if selector else {})}


BUSY, IDLE = pod(container({"cpu": "1"})), pod(container())
LIMITED = pod(container(), activeDeadlineSeconds=5)
HIGH, LOW = pod(container(), priorityClassName="high"), pod(container(), priorityClassName="low")
TERM = {"topologyKey": "x", "namespaceSelector": {}}
CURIOUS = pod(container(), affinity={"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [TERM]}})


@pytest.mark.parametrize(
    ("quota", "inside", "outside"),
    [
        (scoped("BestEffort"), IDLE, BUSY),
        (scoped("NotBestEffort"), BUSY, IDLE),
        (scoped("Terminating"), LIMITED, IDLE),
        (scoped("NotTerminating", "BestEffort"), IDLE, LIMITED),
        (scoped("PriorityClass"), HIGH, IDLE),
        (scoped(scopeName="PriorityClass", operator="In", values=["high"]), HIGH, LOW),
        (scoped(scopeName="PriorityClass", operator="NotIn", values=["high"]), IDLE, HIGH),
        (scoped(scopeName="PriorityClass", operator="DoesNotExist"), IDLE, HIGH),
        (scoped("CrossNamespacePodAffinity"), CURIOUS, IDLE),
    ],
)
def test_scopes_of_pods(quota: Object, inside: Object, outside: Object) -> None:
    pods = evaluator_of(PODS)
    assert counts(quota, pods, inside)
    assert not counts(quota, pods, outside)
    assert texts(total(quota, pods, [inside, outside, inside], NOW)) == {"pods": "2"}


def test_a_scope_leaves_out_what_it_does_not_speak_of() -> None:
    assert not counts(scoped("BestEffort"), evaluator_of(GVR("", "v1", "secrets")), {})
    classes = scoped(scopeName="VolumeAttributesClass", operator="In", values=["fast"])
    claim = {"spec": {"volumeAttributesClassName": "slow"}, "status": {"currentVolumeAttributesClassName": "fast"}}
    assert counts(classes, evaluator_of(PERSISTENTVOLUMECLAIMS), claim)
    assert not counts(classes, evaluator_of(PERSISTENTVOLUMECLAIMS), {"spec": {}})
