"""What the status of a ValidatingAdmissionPolicy says of expressions that do not fit the kinds they are for."""

from __future__ import annotations

from typing import Any

import pytest

from kone.apimachinery.cel_schema import escaped
from kone.apimachinery.objects import Object
from kone.registry.policy_type_checks import TypeChecker
from kone.registry.registry import builtin
from kone.registry.resource import Registry

SCHEMA = {
    "type": "object",
    "properties": {"spec": {"type": "object", "properties": {"n": {"type": "integer"}, "a-b": {"type": "string"}}}},
}


def warnings(expression: str, resource: str = "deployments", group: str = "apps", **spec: Any) -> list[Object]:
    rule = {"apiGroups": [group], "apiVersions": ["v1"], "operations": ["*"], "resources": [resource]}
    policy = {"matchConstraints": {"resourceRules": [rule]}, "validations": [{"expression": expression}], **spec}
    return TypeChecker(builtin(), lambda gvk: None).warnings({"spec": policy})


@pytest.mark.parametrize(
    "expression",
    [
        "object.spec.replicas <= 5 && object.spec.template.spec.containers.all(c, c.image != '')",
        "object.metadata.labels['a'] == 'b' && object.metadata.creationTimestamp > timestamp(0)",
        "object.spec.strategy.rollingUpdate.maxSurge == 1 || request.userInfo.username == 'a'",
        "quantity(string(object.spec.template.spec.containers[0].resources.requests.cpu)).isInteger()",
    ],
)
def test_what_fits(expression: str) -> None:
    assert warnings(expression) == []


def test_what_does_not_fit_is_told_by_its_place_and_kind() -> None:
    (found,) = warnings("object.replicas > 1")
    assert found == {
        "fieldRef": "spec.validations[0].expression",
        "warning": "apps/v1, Kind=Deployment: compilation failed: ERROR: <input>:1:7: undefined field 'replicas'\n"
        " | object.replicas > 1\n | ......^\n",
    }
    (found,) = warnings("object.spec.replicas == '1'")
    assert "found no matching overload for '_==_' applied to '(int, string)'" in found["warning"]


def test_variables_and_params_have_types() -> None:
    variables = [{"name": "n", "expression": "object.spec.replicas"}]
    (found,) = warnings("variables.n == 'a'", variables=variables)
    assert "'(int, string)'" in found["warning"]
    kind = {"apiVersion": "v1", "kind": "ConfigMap"}
    assert warnings("params.data.a == 'b'", paramKind=kind) == []
    assert "undefined field 'spec'" in warnings("params.spec.a == 'b'", paramKind=kind)[0]["warning"]


def test_wildcards_are_not_looked_at() -> None:
    assert warnings("object.zz == 1", resource="*") == []


def test_custom_kinds_are_checked_by_their_schema() -> None:
    from dataclasses import replace

    from kone.apimachinery.kinds import GVR

    registry = Registry()
    deployments = builtin().find("apps", "v1", "deployments")
    assert deployments is not None
    registry.add(replace(deployments, gvr=GVR("example.com", "v1", "things"), kind="Thing"))
    rule = {"apiGroups": ["example.com"], "apiVersions": ["v1"], "operations": ["*"], "resources": ["things"]}

    def check(expression: str) -> list[Object]:
        policy = {"matchConstraints": {"resourceRules": [rule]}, "validations": [{"expression": expression}]}
        return TypeChecker(registry, lambda gvk: SCHEMA).warnings({"spec": policy})

    assert check("object.spec.n > 1 && object.spec.a__dash__b == 'x' && object.metadata.name != ''") == []
    assert "undefined field 'm'" in check("object.spec.m > 1")[0]["warning"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a", "a"),
        ("namespace", "__namespace__"),
        ("a-b", "a__dash__b"),
        ("a.b/c", "a__dot__b__slash__c"),
        ("a__b", "a__underscores__b"),
        ("a b", None),
        ("1a", None),
    ],
)
def test_names_are_escaped(name: str, shown: str | None) -> None:
    assert escaped(name) == shown
