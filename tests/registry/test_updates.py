"""What a kind's update may keep, and what its status is held to, though its creation or its spec would not tell."""

from __future__ import annotations

from typing import Any

import pytest

from kone.apimachinery.objects import Object, deep_copy
from kone.registry.core.node import node_update
from kone.registry.core.service_rules import cidr_warnings
from kone.registry.rules import Errors
from tests.registry.pipeline import answer, put, resource_of, strategy_of

_BAD_VALUE = {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["no label value!"]}]}
_V1_BEHAVIOR = "autoscaling.alpha.kubernetes.io/behavior"
_V1_METRICS = "autoscaling.alpha.kubernetes.io/metrics"
_EMPTY_MATCH = "pdb.kubernetes.io/deprecated-v1beta1-empty-selector-match"


def _hpa(version: str, kind: str) -> Object:
    spec = {"maxReplicas": 3, "scaleTargetRef": {"apiVersion": version, "kind": kind, "name": "web"}}
    return {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "x"}, "spec": spec}


@pytest.mark.parametrize(
    ("version", "kind", "error"),
    [
        ("apps/v1", "Deployment", ""),
        ("v1", "ReplicationController", ""),
        ("", "ReplicationController", ""),
        ("v1", "Deployment", 'Invalid value: "v1": apiVersion must specify API group'),
        ("a/b/c", "ReplicationController", 'Invalid value: "a/b/c": unexpected GroupVersion string: a/b/c'),
    ],
)
@pytest.mark.parametrize("api", ["autoscaling/v1", "autoscaling/v2"])
def test_what_is_scaled_has_a_group_unless_it_is_a_replication_controller(
    api: str, version: str, kind: str, error: str
) -> None:
    body = {**_hpa(version, kind), "apiVersion": api}
    head = 'HorizontalPodAutoscaler.autoscaling "x" is invalid: spec.scaleTargetRef.apiVersion: '
    assert answer(body).error == (head + error if error else "")


@pytest.mark.parametrize(
    ("path", "value", "is_asked"),
    [
        ("spec.maxReplicas", 5, False),
        ("spec.scaleTargetRef.name", "other", False),
        ("spec.scaleTargetRef.kind", "ReplicaSet", True),
        ("spec.scaleTargetRef.apiVersion", "v2", True),
    ],
)
def test_a_target_without_group_stays_until_its_kind_changes(path: str, value: Any, is_asked: bool) -> None:
    old = _hpa("v1", "Deployment")
    new = deep_copy(old)
    put(new, path, value)
    assert ("apiVersion must specify API group" in answer(new, old).error) is is_asked


def test_a_described_object_keeps_an_api_version_that_is_none() -> None:
    source = {
        "describedObject": {"apiVersion": "a/b/c", "kind": "Queue", "name": "q"},
        "metric": {"name": "length"},
        "target": {"type": "Value", "value": "3"},
    }
    old = _hpa("apps/v1", "Deployment")
    old["spec"]["metrics"] = [{"type": "Object", "object": source}]
    new = deep_copy(old)
    new["spec"]["maxReplicas"] = 5
    assert "unexpected GroupVersion string: a/b/c" in answer(old).error
    assert answer(new, old).error == ""


@pytest.mark.parametrize(
    ("annotation", "value", "generation"),
    [
        ("example.com/any", "x", 1),
        (_V1_BEHAVIOR, '{"ScaleUp":{"Policies":[{"Type":"Pods","Value":1,"PeriodSeconds":5}]}}', 2),
        (_V1_METRICS, '[{"type":"Pods","pods":{"metricName":"hits","targetAverageValue":"3"}}]', 2),
    ],
)
def test_what_v1_carries_in_annotations_counts_as_spec(annotation: str, value: str, generation: int) -> None:
    old = {**_hpa("apps/v1", "Deployment"), "apiVersion": "autoscaling/v1"}
    old["metadata"]["generation"] = 1
    old["spec"]["targetCPUUtilizationPercentage"] = 50
    new = deep_copy(old)
    new["metadata"]["annotations"] = {annotation: value}
    made = answer(new, old)
    assert made.object is not None, made.error
    assert made.object["metadata"]["generation"] == generation


def test_a_topology_keeps_values_that_are_no_label_values() -> None:
    old = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "CSIStorageCapacity",
        "metadata": {"name": "x"},
        "storageClassName": "fast",
        "nodeTopology": _BAD_VALUE,
    }
    new = {**old, "capacity": "1Gi"}
    assert "nodeTopology.matchExpressions[0].values[0]" in answer(new).error
    assert answer(new, old).error == ""


@pytest.mark.parametrize(
    ("path", "value", "error"),
    [
        ("status.attached", True, ""),
        ("status.attachError.message", "e" * 1024, ""),
        ("status.attachError.message", "e" * 1025, "status.attachError.message: Too long: may not be more than 1024"),
        ("status.detachError.errorCode", -1, "status.detachError.errorCode: Invalid value: -1: must be between 0 and"),
        ("status.attachmentMetadata.key", "v" * (256 * 1024), "status.attachmentMetadata: Too long: may not be more"),
    ],
)
def test_the_status_of_an_attachment_is_held_to_its_rules(path: str, value: Any, error: str) -> None:
    old = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "VolumeAttachment",
        "metadata": {"name": "x"},
        "spec": {"attacher": "csi.example.com", "nodeName": "n", "source": {"persistentVolumeName": "pv"}},
    }
    new = deep_copy(old)
    put(new, path, value)
    said = answer(new, old, "status").error
    assert error in said
    assert bool(error) is bool(said)


@pytest.mark.parametrize(
    ("operators", "left"),
    [
        ([(_EMPTY_MATCH, "Exists")], [_EMPTY_MATCH]),
        ([(_EMPTY_MATCH, "DoesNotExist")], []),
        ([("app", "Exists")], ["app"]),
        ([("app", "Exists"), (_EMPTY_MATCH, "Exists")], ["app"]),
    ],
)
def test_a_budget_has_the_key_of_the_empty_match_alone_or_not_at_all(
    operators: list[tuple[str, str]], left: list[str]
) -> None:
    expressions = [{"key": key, "operator": operator} for key, operator in operators]
    body = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "x"},
        "spec": {"minAvailable": 1, "selector": {"matchExpressions": expressions}},
    }
    made = answer(body).object
    assert made is not None
    found = made["spec"]["selector"].get("matchExpressions")
    assert [each["key"] for each in found or ()] == left
    assert found != []


def test_a_budget_of_labels_alone_gets_no_expressions() -> None:
    spec = {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}}
    made = answer(
        {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "x"}, "spec": spec}
    ).object
    assert made is not None
    assert made["spec"]["selector"] == {"matchLabels": {"app": "web"}}


def test_a_budget_keeps_a_selector_that_does_not_change() -> None:
    expressions = [{"key": key, "operator": "Exists"} for key in ("app", _EMPTY_MATCH)]
    old = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "x"},
        "spec": {"minAvailable": 1, "selector": {"matchExpressions": expressions}},
    }
    new = deep_copy(old)
    new["spec"]["minAvailable"] = 2
    made = answer(new, old).object
    assert made is not None
    assert len(made["spec"]["selector"]["matchExpressions"]) == 2


@pytest.mark.parametrize(
    ("had", "has", "count"),
    [
        (["10.0.0.0/24"], ["10.0.0.0/24"], 0),
        ([], ["10.0.0.0/24"], 0),
        (["10.0.0.0/24"], [], 1),
        (["10.0.0.0/24"], ["10.0.0.0/24", "fd00::/64"], 1),
        (["10.0.0.0/24", "fd00::/64"], ["10.0.1.0/24", "fd01::/64"], 2),
    ],
)
def test_each_range_of_a_node_that_changes_is_a_cause(had: list[str], has: list[str], count: int) -> None:
    errors: Errors = []
    new, old = ({"metadata": {}, "spec": {"podCIDRs": cidrs}, "status": {}} for cidrs in (has, had))
    node_update(errors, new, old)
    assert [error.field for error in errors] == ["spec.podCIDRs"] * count


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("2001:db8::/64", []),
        ("10.0.0.0/8", []),
        (
            "2001:0db8::/64",
            ['p: IPv6 CIDR value "2001:0db8::/64" should be in RFC 5952 canonical format ("2001:db8::/64")'],
        ),
        (" 2001:0db8::/64", []),
    ],
)
def test_a_range_that_is_not_canonical_is_warned_of_unless_it_is_padded(value: str, texts: list[str]) -> None:
    assert list(cidr_warnings("p", value)) == texts


def _stateful_set(image: str, label: str = "web") -> Object:
    spec = {
        "selector": {"matchLabels": {"app": "web"}},
        "template": {
            "metadata": {"labels": {"app": "web", "tier": label}},
            "spec": {"containers": [{"name": "c", "image": image}]},
        },
    }
    return {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "x"}, "spec": spec}


@pytest.mark.parametrize(("stored", "is_asked"), [("web", True), ("", False)])
def test_the_pod_spec_of_a_stateful_set_that_was_stored_invalid_is_left_alone(stored: str, is_asked: bool) -> None:
    error = answer(_stateful_set(""), _stateful_set(stored)).error
    assert ("spec.template.spec.containers[0].image: Required value" in error) is is_asked


def test_the_labels_of_a_stateful_set_that_was_stored_invalid_are_still_asked() -> None:
    error = answer(_stateful_set("", "no label!"), _stateful_set("")).error
    assert 'spec.template.labels: Invalid value: "no label!"' in error
    assert "image" not in error


def test_a_quota_names_a_misapplied_scope_once_for_each_resource() -> None:
    hard = {"cpu": "1", "memory": "1", "pods": "1"}
    spec = {
        "hard": hard,
        "scopes": ["BestEffort"],
        "scopeSelector": {"matchExpressions": [{"scopeName": "BestEffort", "operator": "Exists"}]},
    }
    quota: Object = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "x"}, "spec": spec}
    resource = resource_of(quota)
    errors = strategy_of(resource, "").validate(quota, None)
    paths = ["spec.scopes"] * 2 + ["spec.scopeSelector.matchExpressions"] * 2
    assert [error.field for error in errors] == paths
