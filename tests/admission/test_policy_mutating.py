"""MutatingAdmissionPolicy: what expressions make of an object, and when they are refused."""

from __future__ import annotations

from typing import Any

import pytest

from kone.admission.chain import Chain
from kone.admission.metrics import AdmissionMetrics
from kone.admission.policy_merge import CannotMerge, merge
from kone.admission.policy_mutating import MutatingAdmissionPolicy
from kone.admission.webhooks import finisher
from kone.admission.webhooks_matching import Matcher
from kone.aio.clock import FakeClock
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import GVK, GVR, NAMESPACES
from kone.apimachinery.objects import Object
from kone.auth.authorizer import Authorizer
from kone.registry.registry import builtin
from tests.admission.support import pod, write
from tests.memory_caches import MemoryCaches

GROUP = "admissionregistration.k8s.io"
RULE = {"operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["*"]}
POD = GVK("", "v1", "Pod")


def apply(expression: str) -> Object:
    return {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}


def patch(expression: str) -> Object:
    return {"patchType": "JSONPatch", "jsonPatch": {"expression": expression}}


def world(*policies: Object) -> Chain:
    """Policies a, b, c … each with its binding."""
    caches = MemoryCaches()
    caches.put(NAMESPACES, {"metadata": {"name": "ns"}})
    for name, spec in zip("abc", policies, strict=False):
        full = {"matchConstraints": {"resourceRules": [RULE]}, "reinvocationPolicy": "Never", **spec}
        caches.put(GVR(GROUP, "v1", "mutatingadmissionpolicies"), {"metadata": {"name": name}, "spec": full})
        binding = {"metadata": {"name": name}, "spec": {"policyName": name}}
        caches.put(GVR(GROUP, "v1", "mutatingadmissionpolicybindings"), binding)
    registry = builtin()
    matcher = Matcher(caches, registry)
    metrics = AdmissionMetrics(FakeClock())
    authorizer, finish = Authorizer(caches, []), finisher(registry)
    return Chain([MutatingAdmissionPolicy(caches, matcher, registry, authorizer, metrics, finish)], metrics)


async def mutated(*policies: Object, **spec: Any) -> Object:
    a = write("CREATE", pod(**spec))
    await world(*policies).mutate(a)
    return a.object


async def test_an_apply_configuration_is_merged_and_gets_defaults() -> None:
    expression = "Object{metadata: Object.metadata{labels: {'a': 'b'}}, spec: Object.spec{initContainers: [" + (
        "Object.spec.initContainers{name: 'i', image: 'x', restartPolicy: 'Always'}]}}"
    )
    found = await mutated({"mutations": [apply(expression)]})
    assert found["metadata"]["labels"] == {"a": "b"}
    assert found["spec"]["initContainers"][0]["imagePullPolicy"] == "Always"
    assert found["spec"]["containers"][0]["name"] == "c"


async def test_a_json_patch_is_applied_unless_its_test_fails() -> None:
    add = "JSONPatch{op: 'add', path: '/metadata/labels', value: {jsonpatch.escapeKey('a/b'): '1'}}"
    found = await mutated({"mutations": [patch(f"[{add}]")]})
    assert found["metadata"]["labels"] == {"a~1b": "1"}
    failing = f"[JSONPatch{{op: 'test', path: '/metadata/name', value: 'other'}}, {add}]"
    assert "labels" not in (await mutated({"mutations": [patch(failing)]}))["metadata"]


async def test_mutations_build_on_each_other_and_earlier_policies_may_look_again() -> None:
    count = "Object{metadata: Object.metadata{labels: {'%s': string(object.metadata.?labels.orValue({}).size())}}}"
    first = {"mutations": [apply(count % "a"), apply(count % "b")], "reinvocationPolicy": "IfNeeded"}
    second = {"mutations": [apply(count % "c")]}
    found = await mutated(first, second)
    assert found["metadata"]["labels"] == {"a": "3", "b": "3", "c": "2"}


@pytest.mark.parametrize(
    ("mutation", "text"),
    [
        (
            apply("Object{spec: Object.spec{containers: [Object.spec.wrong{name: 'c'}]}}"),
            'type mismatch: unexpected type name "Object.spec.wrong", expected "Object.spec.containers", '
            "which matches field name path from root Object type",
        ),
        (
            apply("Object{spec: Object.spec{nodeSelector: {'a': 'b'}}}"),
            "error applying patch: invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: "
            ".spec.nodeSelector",
        ),
        (
            apply("Object{spec: Object.spec{zz: 1}}"),
            "error applying patch: failed to convert patch object to typed object: .spec.zz: "
            "field not declared in schema",
        ),
        (
            patch("[JSONPatch{op: 'add', path: object.zz, value: 1}]"),
            "expression '[JSONPatch{op: 'add', path: object.zz, value: 1}]' resulted in error: no such key: zz",
        ),
    ],
)
async def test_what_cannot_be_made_is_refused_or_let_be(mutation: Object, text: str) -> None:
    with pytest.raises(StatusError) as caught:
        await mutated({"mutations": [mutation]})
    assert (caught.value.code, caught.value.reason) == (403, "Invalid")
    assert str(caught.value) == f"policy 'a' with binding 'a' denied request: {text}"
    assert "labels" not in (await mutated({"mutations": [mutation], "failurePolicy": "Ignore"}))["metadata"]


def test_lists_of_maps_are_merged_by_their_keys_and_sets_united() -> None:
    live = {"metadata": {"finalizers": ["a"]}, "spec": {"containers": [{"name": "c", "image": "i"}, {"name": "d"}]}}
    change = {
        "metadata": {"finalizers": ["a", "b"]},
        "spec": {"containers": [{"name": "c", "tty": True}, {"name": "e"}]},
    }
    merged = merge(live, change, POD)
    assert merged["metadata"]["finalizers"] == ["a", "b"]
    assert merged["spec"]["containers"] == [{"name": "c", "image": "i", "tty": True}, {"name": "d"}, {"name": "e"}]
    assert live["spec"]["containers"][0] == {"name": "c", "image": "i"}


def test_custom_resources_are_merged_as_maps_and_their_lists_are_atomic() -> None:
    kind = GVK("example.com", "v1", "Thing")
    assert merge({"spec": {"a": 1}}, {"spec": {"b": 2}}, kind) == {"spec": {"a": 1, "b": 2}}
    with pytest.raises(CannotMerge, match="may not mutate atomic"):
        merge({"spec": {}}, {"spec": {"l": [1]}}, kind)


async def test_mutations_are_counted_by_whether_they_failed() -> None:
    chain = world(
        {
            "mutations": [apply("Object{}"), patch("[JSONPatch{op: 'test', path: '/kind', value: object.zz}]")],
            "failurePolicy": "Ignore",
        }
    )
    await chain.mutate(write("CREATE", pod()))
    head = "apiserver_mutating_admission_policy_check_total"
    assert [line for line in chain.metrics.text() if line.startswith(head)] == [
        head + '{policy="a",policy_binding="a",error_type="invalid_error"} 1',
        head + '{policy="a",policy_binding="a",error_type="no_error"} 1',
    ]
