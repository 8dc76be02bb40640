"""What a new cluster holds, and what a later start leaves alone."""

from __future__ import annotations

from typing import Any

import pytest

from kone.apimachinery.kinds import (
    CLUSTERROLEBINDINGS,
    CLUSTERROLES,
    FLOWSCHEMAS,
    GVR,
    NAMESPACES,
    PRIORITYLEVELCONFIGURATIONS,
    SERVICES,
)
from kone.apimachinery.objects import Object, name_of, namespace_of, replace_in
from kone.auth.bootstrap import KINDS, Bootstrap, bootstrap_objects, keep_flow_control, node_rules, reconcile


class Stored:
    """A write path in a dict."""

    def __init__(self) -> None:
        self.objects: dict[tuple[GVR, str, str], Object] = {}
        self.writes = 0

    def get(self, resource: GVR, namespace: str, name: str) -> Object | None:
        return self.objects.get((resource, namespace, name))

    async def create(
        self, resource: GVR, obj: Object, *, namespace: str = "", subresource: str = "", name: str = ""
    ) -> Object:
        self.writes += 1
        if resource != NAMESPACES and namespace:
            assert (NAMESPACES, "", namespace) in self.objects, "namespaces come first"
        self.objects[resource, namespace, name_of(obj)] = obj
        return obj

    async def update(self, resource: GVR, obj: Object, *, subresource: str = "") -> Object:
        self.writes += 1
        self.objects[resource, namespace_of(obj), name_of(obj)] = obj
        return obj

    async def delete(self, resource: GVR, name: str, *, namespace: str = "") -> None:
        self.writes += 1
        del self.objects[resource, namespace, name]


@pytest.fixture
async def stored() -> Stored:
    made = Stored()
    await reconcile(made, made.get, bootstrap_objects())
    made.writes = 0
    return made


async def again(stored: Stored) -> int:
    return await reconcile(stored, stored.get, bootstrap_objects())


def test_every_kind_is_there() -> None:
    objects = bootstrap_objects()
    assert {one.resource for one in objects} == set(KINDS)
    assert {name_of(one.obj) for one in objects if one.resource == NAMESPACES} == {
        "default",
        "kube-system",
        "kube-public",
        "kube-node-lease",
    }
    assert all(one.obj["kind"] == KINDS[one.resource] for one in objects)


def test_the_kubernetes_service_has_the_first_address_and_leads_to_the_api() -> None:
    service = find(bootstrap_objects(("10.50.0.0/17",), 6504), SERVICES, "kubernetes")
    assert service["spec"]["clusterIPs"] == ["10.50.0.1"]
    assert service["spec"]["ports"] == [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": 6504}]
    v6 = find(bootstrap_objects(("fd00::/112",)), SERVICES, "kubernetes")
    assert (v6["spec"]["clusterIP"], v6["spec"]["ipFamilies"]) == ("fd00::1", ["IPv6"])


def test_the_node_authorizer_finds_its_rules() -> None:
    assert any("events" in rule["resources"] for rule in node_rules())


async def test_a_second_start_writes_nothing(stored: Stored) -> None:
    assert await again(stored) == 0
    assert stored.writes == 0


async def test_a_rule_that_was_taken_away_comes_back_and_additions_stay(stored: Stored) -> None:
    key = (CLUSTERROLES, "", "system:basic-user")
    extra: Object = {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}
    stored.objects[key] = {**stored.objects[key], "rules": [extra]}
    assert await again(stored) == 1
    rules: list[Any] = stored.objects[key]["rules"]
    assert rules[0] == extra
    assert len(rules) > 1


async def test_what_says_it_wants_no_update_gets_none(stored: Stored) -> None:
    key = (CLUSTERROLES, "", "system:basic-user")
    alone = replace_in(
        stored.objects[key], ("metadata", "annotations"), {"rbac.authorization.kubernetes.io/autoupdate": "false"}
    )
    stored.objects[key] = {**alone, "rules": []}
    assert await again(stored) == 0


async def test_aggregated_rules_are_the_controllers(stored: Stored) -> None:
    key = (CLUSTERROLES, "", "view")
    filled: Object = {**stored.objects[key], "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]}
    stored.objects[key] = filled
    assert await again(stored) == 0
    assert stored.objects[key] == filled


async def test_a_binding_to_another_role_is_made_anew(stored: Stored) -> None:
    key = (CLUSTERROLEBINDINGS, "", "cluster-admin")
    good = stored.objects[key]
    stored.objects[key] = {**good, "roleRef": {**good["roleRef"], "name": "view"}}
    assert await again(stored) == 1
    assert stored.objects[key] == good


def find(objects: list[Bootstrap], resource: GVR, name: str) -> Object:
    return next(one.obj for one in objects if one.resource == resource and name_of(one.obj) == name)


# -- flow control's objects --------------------------------------------------------------------------------------------

WORKLOAD_LOW = (PRIORITYLEVELCONFIGURATIONS, "", "workload-low")
CATCH_ALL = (FLOWSCHEMAS, "", "catch-all")
OTHER_SPEC: Any = {"type": "Limited", "limited": {"nominalConcurrencyShares": 1}}


@pytest.mark.parametrize(
    ("key", "annotation", "generation", "kept", "says"),
    [
        (WORKLOAD_LOW, "true", 3, True, "true"),
        (WORKLOAD_LOW, "false", 1, False, "false"),
        (WORKLOAD_LOW, None, 1, True, "true"),  # nobody has changed it
        (WORKLOAD_LOW, None, 2, False, "false"),
        (WORKLOAD_LOW, "maybe", 2, False, "false"),
        (CATCH_ALL, "false", 5, True, "true"),
        (CATCH_ALL, None, 5, True, "true"),
    ],
)
async def test_the_annotation_or_that_nobody_changed_it_says_whether_a_spec_is_kept(
    stored: Stored, key: Any, annotation: str | None, generation: int, kept: bool, says: str
) -> None:
    before = stored.objects[key]
    annotations = {} if annotation is None else {"apf.kubernetes.io/autoupdate-spec": annotation}
    meta = {**before["metadata"], "annotations": annotations, "generation": generation}
    stored.objects[key] = {**before, "spec": OTHER_SPEC, "metadata": meta}
    await again(stored)
    found = stored.objects[key]
    assert (found["spec"] == before["spec"]) is kept
    assert found["metadata"]["annotations"]["apf.kubernetes.io/autoupdate-spec"] == says


async def test_how_many_seats_exempt_requests_count_for_is_the_administrators(stored: Stored) -> None:
    key = (PRIORITYLEVELCONFIGURATIONS, "", "exempt")
    stored.objects[key] = replace_in(stored.objects[key], ("spec", "exempt", "nominalConcurrencyShares"), 10)
    assert await again(stored) == 0


async def test_what_is_no_longer_suggested_goes_where_it_is_kept(stored: Stored) -> None:
    for name, annotation in (("old", "true"), ("mine", "false"), ("other", None)):
        annotations = {} if annotation is None else {"apf.kubernetes.io/autoupdate-spec": annotation}
        obj = {"metadata": {"name": name, "annotations": annotations}, "spec": OTHER_SPEC}
        stored.objects[PRIORITYLEVELCONFIGURATIONS, "", name] = obj
    del stored.objects[WORKLOAD_LOW]

    def listed(resource: GVR) -> list[Object]:
        return [obj for key, obj in stored.objects.items() if key[0] == resource]

    await keep_flow_control(stored, stored.get, listed, bootstrap_objects())
    names = {name_of(obj) for obj in listed(PRIORITYLEVELCONFIGURATIONS)}
    assert {"mine", "other", "workload-low"} <= names
    assert "old" not in names
