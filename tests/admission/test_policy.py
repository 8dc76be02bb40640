"""ValidatingAdmissionPolicy: whom it concerns, what it decides, and in which words."""

from __future__ import annotations

from typing import Any

import pytest

from kone.admission.metrics import AdmissionMetrics
from kone.admission.plugin import Attributes
from kone.admission.policy import ValidatingAdmissionPolicy
from kone.admission.webhooks_matching import Matcher
from kone.aio.clock import FakeClock
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import GVR, NAMESPACES
from kone.apimachinery.objects import Object
from kone.auth.authorizer import Authorizer
from kone.registry.registry import builtin
from tests.admission.support import write
from tests.memory_caches import MemoryCaches

GROUP = "admissionregistration.k8s.io"
POLICIES = GVR(GROUP, "v1", "validatingadmissionpolicies")
BINDINGS = GVR(GROUP, "v1", "validatingadmissionpolicybindings")
CONFIGMAPS = GVR("", "v1", "configmaps")
RULE = {"operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}


class World:
    def __init__(self, spec: Object, binding: Object | None = None) -> None:
        self.caches = MemoryCaches()
        self.caches.put(NAMESPACES, {"metadata": {"name": "ns", "labels": {"team": "a"}}})
        policy = {"matchConstraints": {"resourceRules": [RULE]}, **spec}
        self.caches.put(POLICIES, {"metadata": {"name": "p"}, "spec": policy})
        bound = {"policyName": "p", "validationActions": ["Deny"], **(binding or {})}
        self.caches.put(BINDINGS, {"metadata": {"name": "b"}, "spec": bound})
        registry = builtin()
        matcher = Matcher(self.caches, registry)
        self.metrics = AdmissionMetrics(FakeClock())
        authorizer = Authorizer(self.caches, [])
        self.plugin = ValidatingAdmissionPolicy(self.caches, matcher, registry, authorizer, self.metrics)

    async def admit(self, operation: Any = "CREATE", **data: str) -> Attributes:
        obj = {"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "c", "namespace": "ns"}, "data": data}
        a = write(operation, obj, CONFIGMAPS, old=obj if operation == "UPDATE" else None)
        await self.plugin.validate(a)
        return a

    async def refusal(self, **data: str) -> str:
        with pytest.raises(StatusError) as caught:
            await self.admit(**data)
        text = str(caught.value)
        head = "configmaps \"c\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: "
        assert text.startswith(head)
        assert caught.value.details is not None
        assert caught.value.details["causes"] == [{"message": text.partition("forbidden: ")[2]}]
        return text.removeprefix(head)


def valid(expression: str, **fields: str) -> Object:
    return {"validations": [{"expression": expression, **fields}]}


@pytest.mark.parametrize(
    ("validation", "text"),
    [
        ({"expression": "object.data.a == 'ok'"}, "failed expression: object.data.a == 'ok'"),
        ({"expression": "false", "message": "no"}, "no"),
        ({"expression": "false", "message": "no", "messageExpression": "'a is ' + object.data.a"}, "a is x"),
        ({"expression": "false", "message": "no", "messageExpression": "object.data.zz"}, "no"),
        ({"expression": "object.zz"}, "compilation error: must evaluate to bool but got dyn"),
        ({"expression": "object.zz == 1"}, "expression 'object.zz == 1' resulted in error: no such key: zz"),
    ],
)
async def test_a_refusal_says_why(validation: Object, text: str) -> None:
    assert await World({"validations": [validation]}).refusal(a="x") == text


async def test_a_reason_has_its_code() -> None:
    with pytest.raises(StatusError) as caught:
        await World(valid("false", reason="RequestEntityTooLarge")).admit()
    assert (caught.value.code, caught.value.reason) == (413, "RequestEntityTooLarge")


async def test_a_policy_without_a_binding_concerns_nobody() -> None:
    world = World(valid("false"), {"policyName": "other"})
    await world.admit()


async def test_failure_policy_ignore_forgives_errors_not_verdicts() -> None:
    world = World({**valid("object.zz == 1"), "failurePolicy": "Ignore"})
    await world.admit()
    assert await World({**valid("false"), "failurePolicy": "Ignore"}).refusal() == "failed expression: false"


@pytest.mark.parametrize(
    ("spec", "binding", "concerned"),
    [
        ({"matchConditions": [{"name": "c", "expression": "object.metadata.name == 'other'"}]}, {}, False),
        ({"matchConditions": [{"name": "c", "expression": "request.namespace == 'ns'"}]}, {}, True),
        ({}, {"matchResources": {"namespaceSelector": {"matchLabels": {"team": "b"}}}}, False),
        ({}, {"matchResources": {"resourceRules": [{**RULE, "resourceNames": ["x"]}]}}, False),
        ({}, {"matchResources": {"excludeResourceRules": [RULE]}}, False),
        ({"matchConstraints": {"resourceRules": [{**RULE, "operations": ["DELETE"]}]}}, {}, False),
    ],
)
async def test_whom_it_concerns(spec: Object, binding: Object, concerned: bool) -> None:
    world = World({**valid("false"), **spec}, binding)
    if concerned:
        await world.refusal()
    else:
        await world.admit()


async def test_variables_are_worked_out_when_they_are_needed() -> None:
    variables = [{"name": "n", "expression": "int(object.data.n)"}, {"name": "m", "expression": "variables.n * 2"}]
    spec = {**valid("variables.m < 10", messageExpression="string(variables.m)"), "variables": variables}
    world = World(spec)
    await world.admit(n="4")
    assert await world.refusal(n="5") == "10"
    assert await world.refusal(n="x") == (
        "expression 'variables.m < 10' resulted in error: composited variable \"m\" fails to evaluate: "
        "composited variable \"n\" fails to evaluate: type conversion error from 'string' to 'int'"
    )


async def test_params_are_given_or_missed() -> None:
    kind = {"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"}}
    ref = {"paramRef": {"name": "settings", "parameterNotFoundAction": "Deny"}}
    world = World({**valid("object.data.a == params.data.a"), **kind}, ref)
    missing = "failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction"
    assert await world.refusal(a="x") == missing
    world.caches.put(CONFIGMAPS, {"metadata": {"name": "settings", "namespace": "ns"}, "data": {"a": "x"}})
    await world.admit(a="x")
    assert await world.refusal(a="y") == "failed expression: object.data.a == params.data.a"
    allow = {"paramRef": {"name": "settings", "parameterNotFoundAction": "Allow"}}
    await World({**valid("false"), **kind}, allow).admit()


async def test_warnings_and_annotations() -> None:
    spec = {
        **valid("false", message="no"),
        "auditAnnotations": [{"key": "k", "valueExpression": "string(object.data.a)"}],
    }
    a = await World(spec, {"validationActions": ["Warn", "Audit"]}).admit(a="x")
    assert a.warnings == ["Validation failed for ValidatingAdmissionPolicy 'p' with binding 'b': no"]
    assert a.annotations["p/k"] == "x"
    assert (
        '"policy":"p","binding":"b","expressionIndex":0'
        in a.annotations["validation.policy.admission.k8s.io/validation_failure"]
    )


@pytest.mark.parametrize(
    ("spec", "actions", "counted"),
    [
        (valid("false"), ["Warn", "Audit"], ["no_error audit", "no_error warn"]),
        ({**valid("object.zz == 1"), "failurePolicy": "Ignore"}, ["Deny"], ["invalid_error allow"]),
        (valid("object.zz == 1"), ["Audit"], ["invalid_error audit"]),
        (valid("true"), ["Deny"], []),
    ],
)
async def test_what_does_not_hold_is_counted_by_what_came_of_it(
    spec: Object, actions: list[str], counted: list[str]
) -> None:
    world = World(spec, {"validationActions": actions})
    await world.admit()
    head = 'apiserver_validating_admission_policy_check_total{policy="p",policy_binding="b",'
    lines = [line.removeprefix(head) for line in world.metrics.text() if line.startswith(head)]
    error_and_action = (line.replace('error_type="', "").replace('",enforcement_action="', " ") for line in lines)
    assert [line.removesuffix('"} 1') for line in error_and_action] == counted
