"""JSON patch, JSON merge patch, and what both share with strategic merge patch."""

import copy
from typing import Any

import pytest

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import GVK
from kone.apimachinery.patch import Patch, apply, json_patch, merge_patch

CONFIG_MAP = GVK("", "v1", "ConfigMap")
DEPLOYMENT = GVK("apps", "v1", "Deployment")


@pytest.mark.parametrize(
    ("operations", "outcome"),
    [
        ([{"op": "add", "path": "/n", "value": 1}], {"a": {"b": [1, 2]}, "n": 1}),
        ([{"op": "add", "path": "/a/b/0", "value": 0}], {"a": {"b": [0, 1, 2]}}),
        ([{"op": "add", "path": "/a/b/-", "value": 3}], {"a": {"b": [1, 2, 3]}}),
        ([{"op": "add", "path": "/a/b/-1", "value": 3}], {"a": {"b": [1, 2, 3]}}),
        ([{"op": "replace", "path": "/a/b/1", "value": 3}], {"a": {"b": [1, 3]}}),
        ([{"op": "replace", "path": "/new", "value": 3}], {"a": {"b": [1, 2]}, "new": 3}),
        ([{"op": "replace", "path": "", "value": {}}], {}),
        ([{"op": "remove", "path": "/a/b/0"}], {"a": {"b": [2]}}),
        ([{"op": "move", "from": "/a/b", "path": "/c"}], {"a": {}, "c": [1, 2]}),
        ([{"op": "test", "path": "/a/b/0", "value": 1}], {"a": {"b": [1, 2]}}),
        ([{"op": "test", "path": "/zz", "value": None}], {"a": {"b": [1, 2]}}),
        ([{"op": "add", "path": "skipped/n", "value": 1}], {"a": {"b": [1, 2]}, "n": 1}),
        (None, {"a": {"b": [1, 2]}}),
        ([], {"a": {"b": [1, 2]}}),
    ],
)
def test_json_patch(operations: Any, outcome: Any) -> None:
    original = {"a": {"b": [1, 2]}}
    assert json_patch(original, operations) == outcome
    assert original == {"a": {"b": [1, 2]}}


def test_json_patch_escapes() -> None:
    assert (
        json_patch({"a/b": 1, "c~d": 2}, [{"op": "remove", "path": "/a~1b"}, {"op": "remove", "path": "/c~0d"}]) == {}
    )


def test_a_copy_is_a_copy() -> None:
    operations = [
        {"op": "add", "path": "/a/x", "value": 1},
        {"op": "copy", "from": "/a", "path": "/b"},
        {"op": "add", "path": "/b/y", "value": 2},
    ]
    assert json_patch({"a": {}}, operations) == {"a": {"x": 1}, "b": {"x": 1, "y": 2}}


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "remove", "path": "/zz"},
        {"op": "test", "path": "/k", "value": "w"},
        {"op": "test", "path": "/n", "value": True},  # 1 is not true
        {"op": "add", "path": "/k/deeper", "value": 1},
        {"op": "add", "path": "/l/9", "value": 1},
        {"op": "add", "path": "/l/x", "value": 1},
        {"op": "move", "path": "/a", "from": "/zz"},
        {"op": "move", "path": "/a"},
        {"op": "frob", "path": "/k"},
        {"op": "add", "value": 1},
        {"path": "/k", "value": 1},
        None,
    ],
)
def test_json_patch_that_does_not_fit(operation: Any) -> None:
    with pytest.raises(StatusError) as caught:
        json_patch({"k": "v", "l": [], "n": 1}, [operation])
    assert (caught.value.code, caught.value.reason) == (422, "Invalid")
    assert caught.value.message == "the server rejected our request due to an error in our request"


@pytest.mark.parametrize(
    ("operations", "text"),
    [
        ({}, "object into Go value of type []handlers.jsonPatchOp"),
        ("x", "string into Go value of type []handlers.jsonPatchOp"),
        ([1], "number into Go value of type handlers.jsonPatchOp"),
        ([{"op": 1, "path": "/x"}], "number into Go struct field jsonPatchOp.op of type string"),
        ([{"op": "add", "path": 1}], "number into Go struct field jsonPatchOp.path of type string"),
    ],
)
def test_what_is_no_json_patch(operations: Any, text: str) -> None:
    with pytest.raises(StatusError) as caught:
        json_patch({}, operations)
    assert (caught.value.code, caught.value.message) == (400, f"error decoding patch: json: cannot unmarshal {text}")


def test_too_many_operations() -> None:
    with pytest.raises(StatusError) as caught:
        json_patch({}, [{}] * 10_001)
    assert caught.value.code == 413


def test_copies_may_not_grow_without_bound() -> None:
    doubling = [{"op": "copy", "from": "/a", "path": f"/a/{i}"} for i in range(100)]
    with pytest.raises(StatusError):
        json_patch({"a": {"x": "x" * 1000}}, doubling)


@pytest.mark.parametrize(
    ("patch", "outcome"),
    [
        ({"a": None}, {"l": [1]}),
        ({"a": {"y": 2}}, {"a": {"x": 1, "y": 2}, "l": [1]}),
        ({"l": [2]}, {"a": {"x": 1}, "l": [2]}),
        ({"new": {"k": None, "m": 1}}, {"a": {"x": 1}, "l": [1], "new": {"m": 1}}),
        ({}, {"a": {"x": 1}, "l": [1]}),
        (None, {"a": {"x": 1}, "l": [1]}),
    ],
)
def test_merge_patch(patch: Any, outcome: Any) -> None:
    original = {"a": {"x": 1}, "l": [1]}
    before = copy.deepcopy(original)
    assert merge_patch(original, patch) == outcome
    assert original == before


def test_a_merge_patch_is_an_object() -> None:
    with pytest.raises(StatusError) as caught:
        merge_patch({}, [])
    assert caught.value.message == (
        "error decoding patch: json: cannot unmarshal array into Go value of type map[string]interface {}"
    )


def config_map(**data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data}


def test_apply_decodes_the_outcome_and_reports_what_it_does_not_know() -> None:
    patched = apply(Patch("merge", {"data": {"k": "w"}, "colour": 1}), config_map(k="v"), CONFIG_MAP)
    assert patched.obj["data"] == {"k": "w"}
    assert "colour" not in patched.obj
    assert patched.findings == ['unknown field "colour"']
    error = patched.strict_error()
    assert error.code == 422
    assert error.message.endswith('strict decoding error: unknown field "colour"')


def test_unknown_members_of_a_json_patch_are_findings() -> None:
    patched = apply(Patch("json", [{"op": "add", "path": "/data/z", "value": "1", "foo": 2}]), config_map(), CONFIG_MAP)
    assert patched.findings == ['json patch unknown field "[0].foo"']


@pytest.mark.parametrize(
    ("kind", "patch", "message"),
    [
        (
            "strategic",
            {"spec": {"replicas": "x"}},
            ' "" is invalid: patch: Invalid value: "map[spec:map[replicas:x]]": unrecognized type: int32',
        ),
        (
            "merge",
            {"spec": {"replicas": "x"}},
            ' "" is invalid: patch: Invalid value: "{\\"apiVersion\\":\\"apps/v1\\",\\"kind\\":\\"Deployment\\",'
            '\\"spec\\":{\\"replicas\\":\\"x\\"}}": json: cannot unmarshal string into Go struct field '
            "DeploymentSpec.spec.replicas of type int32",
        ),
    ],
)
def test_an_outcome_of_the_wrong_type(kind: Any, patch: Any, message: str) -> None:
    with pytest.raises(StatusError) as caught:
        apply(Patch(kind, patch), {"apiVersion": "apps/v1", "kind": "Deployment"}, DEPLOYMENT)
    assert (caught.value.code, caught.value.message) == (422, message)
