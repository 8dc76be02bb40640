"""What every kind's writes have in common: generation, status, metadata that only the server sets."""

from __future__ import annotations

import pytest

from kone.apimachinery.objects import Object, deep_copy
from kone.registry import generic
from kone.registry.core.namespace import NAMESPACES
from tests.registry.pipeline import answer, put, resource_of

TEMPLATE = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}
SELECTOR = {"matchLabels": {"a": "b"}}


def _deployment() -> Object:
    spec = {"selector": deep_copy(SELECTOR), "template": deep_copy(TEMPLATE)}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": spec}


def _stored(body: Object) -> Object:
    made = answer(body)
    assert made.object is not None, made.error
    return made.object


def test_a_client_sets_neither_generation_nor_status_of_something_new() -> None:
    body = _deployment()
    body["metadata"]["generation"], body["status"] = 7, {"replicas": 3}
    stored = _stored(body)
    assert (stored["metadata"]["generation"], stored["status"]) == (1, {})


@pytest.mark.parametrize(
    ("path", "value", "generation"),
    [
        ("spec.replicas", 5, 2),
        ("spec.template.spec.containers.0.image", "i:2", 2),
        ("spec.template.spec.containers.0.resources.limits", {}, 1),
        ("metadata.labels", {"x": "y"}, 1),
        ("metadata.annotations", {"x": "y"}, 2),  # deployments' annotations go to their replica sets
        ("metadata.generation", 9, 1),
        ("status.replicas", 9, 1),
    ],
)
def test_the_generation_counts_changes_of_the_spec(path: str, value: object, generation: int) -> None:
    stored = _stored(_deployment())
    changed = deep_copy(stored)
    put(changed, path, value)
    updated = answer(changed, stored).object
    assert updated is not None
    assert updated["metadata"]["generation"] == generation
    assert updated["status"] == stored["status"]


def test_a_status_update_changes_nothing_else() -> None:
    stored = _stored(_deployment())
    changed = deep_copy(stored)
    put(changed, "spec.replicas", 5)
    put(changed, "metadata.labels", {"x": "y"})
    put(changed, "status.replicas", 2)
    updated = answer(changed, stored, "status").object
    assert updated is not None
    del updated["metadata"]["resourceVersion"]
    assert updated == {**stored, "status": {"replicas": 2}}


def test_a_daemon_set_counts_its_template_in_an_annotation() -> None:
    body = {**_deployment(), "kind": "DaemonSet"}
    stored = _stored(body)
    assert stored["metadata"]["annotations"] == {"deprecated.daemonset.template.generation": "1"}
    changed = deep_copy(stored)
    put(changed, "spec.template.spec.containers.0.image", "i:2")
    updated = answer(changed, stored).object
    assert updated is not None
    assert updated["metadata"]["annotations"] == {"deprecated.daemonset.template.generation": "2"}


def test_a_namespace_goes_when_its_spec_has_no_finalizer_left() -> None:
    strategy = NAMESPACES.strategy
    stored = _stored({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}})
    assert stored["spec"]["finalizers"] == ["kubernetes"]
    assert stored["metadata"]["labels"] == {"kubernetes.io/metadata.name": "n"}
    assert strategy.has_finalizers(stored)
    finalized = answer({**stored, "spec": {}}, stored, "finalize").object
    assert finalized is not None
    assert not strategy.has_finalizers(finalized)


def test_what_the_server_sets_is_wiped_and_kept() -> None:
    obj: Object = {"metadata": {"name": "a", "uid": "mine", "selfLink": "/x", "deletionTimestamp": "never"}}
    generic.fill_system_fields(obj, uid="u", creation_timestamp="2026-01-01T00:00:00Z")
    assert obj["metadata"] == {"name": "a", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}
    changed: Object = {"metadata": {"name": "a", "creationTimestamp": "2001-01-01T00:00:00Z"}}
    generic.keep_system_fields(changed, obj)
    assert changed == obj


OWNER = {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "1"}


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("labels", {"a b": "c"}, 'metadata.labels: Invalid value: "a b": name part must consist of'),
        ("labels", {"a": "b c"}, 'metadata.labels: Invalid value: "b c": a valid label must be'),
        ("annotations", {"A/b/c": ""}, "a valid label key must consist of"),
        ("annotations", {"a": "x" * 262144}, "metadata.annotations: Too long: may not be more than 262144 bytes"),
        ("finalizers", ["x"], 'metadata.finalizers[0]: Invalid value: "x": name is neither a standard finalizer'),
        ("finalizers", ["orphan", "foregroundDeletion"], "finalizer orphan and foregroundDeletion cannot be both set"),
        ("ownerReferences", [{}], "metadata.ownerReferences[0].apiVersion: Required value: must not be empty"),
        ("ownerReferences", [{**OWNER, "kind": "Event"}], "Kind=Event is disallowed from being an owner"),
        ("ownerReferences", [{**OWNER, "controller": True}] * 2, "Only one reference can have Controller set to true"),
        ("generateName", "A", 'metadata.generateName: Invalid value: "A": a lowercase RFC 1123 subdomain must'),
        ("name", "", "metadata.name: Required value: name or generateName is required"),
    ],
)
def test_rules_of_metadata(field: str, value: object, error: str) -> None:
    body: Object = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", field: value}}
    assert error in answer(body).error


def test_a_name_is_judged_by_its_kind() -> None:
    names = {"Pod": "a.b", "Service": "a.b", "Namespace": "a.b", "StatefulSet": "a.b"}
    refused = [
        kind
        for kind, name in names.items()
        if resource_of({"apiVersion": "apps/v1" if kind == "StatefulSet" else "v1", "kind": kind}).strategy.name_rule(
            name, False
        )
    ]
    assert refused == ["Service", "Namespace", "StatefulSet"]


@pytest.mark.parametrize("field", ["name", "namespace", "uid"])
def test_identity_does_not_change(field: str) -> None:
    stored = _stored({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}})
    stored["metadata"]["resourceVersion"] = "1"
    changed = deep_copy(stored)
    changed["metadata"][field] = "other"
    errors = generic.validate_update(changed, stored, resource_of(stored).strategy, namespaced=True)
    assert [str(error) for error in errors] == [f'metadata.{field}: Invalid value: "other": field is immutable']
