"""Strategic merge patch: lists that merge by key, directives, and the order of elements."""

import copy
from typing import Any

import pytest

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import GVK
from kone.apimachinery.strategic_merge import strategic_merge_patch

POD = GVK("", "v1", "Pod")
SERVICE = GVK("", "v1", "Service")
DEPLOYMENT = GVK("apps", "v1", "Deployment")


def pod(*containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {"kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": list(containers), **spec}}


def patched(original: dict[str, Any], patch: dict[str, Any], gvk: GVK = POD) -> dict[str, Any]:
    before = copy.deepcopy((original, patch))
    outcome = strategic_merge_patch(original, patch, gvk)
    assert (original, patch) == before
    return outcome


def names(obj: dict[str, Any]) -> list[str]:
    return [container["name"] for container in obj["spec"]["containers"]]


def containers(*elements: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"spec": {"containers": list(elements), **more}}


A, B, C = ({"name": name, "image": "i:1"} for name in "abc")


def test_a_list_with_a_merge_key_is_merged_by_it() -> None:
    outcome = patched(pod(A, B), containers({"name": "b", "image": "i:2"}))
    assert outcome["spec"]["containers"] == [A, {"name": "b", "image": "i:2"}]


def test_new_elements_come_before_those_that_only_the_server_has() -> None:
    assert names(patched(pod(A), containers(B))) == ["b", "a"]


def test_patched_elements_keep_the_patchs_order_and_others_their_place() -> None:
    assert names(patched(pod(A, B, C), containers({"name": "c"}, {"name": "a"}))) == ["b", "c", "a"]


def test_delete_and_replace_of_elements() -> None:
    assert names(patched(pod(A, B), containers({"name": "a", "$patch": "delete"}))) == ["b"]
    assert names(patched(pod(A, B), containers(C, {"name": "x", "$patch": "replace"}))) == ["c"]


def test_an_atomic_list_is_replaced() -> None:
    outcome = patched(pod(tolerations=[{"key": "a"}]), {"spec": {"tolerations": [{"key": "b"}]}})
    assert outcome["spec"]["tolerations"] == [{"key": "b"}]


def test_maps_merge_and_nulls_delete() -> None:
    outcome = patched(pod(nodeSelector={"a": "1", "b": "2"}), {"spec": {"nodeSelector": {"a": None, "c": "3"}}})
    assert outcome["spec"]["nodeSelector"] == {"b": "2", "c": "3"}


def test_replace_and_delete_of_maps() -> None:
    original = pod(nodeSelector={"a": "1"})
    assert patched(original, {"spec": {"nodeSelector": {"$patch": "replace", "b": "2"}}})["spec"]["nodeSelector"] == {
        "b": "2"
    }
    assert patched(original, {"spec": {"nodeSelector": {"$patch": "delete"}}})["spec"]["nodeSelector"] == {}


def test_retain_keys_drops_what_it_does_not_name() -> None:
    original = {"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}
    patch = {"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}
    assert patched(original, patch, DEPLOYMENT)["spec"]["strategy"] == {"type": "Recreate"}


def test_lists_of_plain_values_merge_without_duplicates() -> None:
    original = {"metadata": {"finalizers": ["a", "b"]}}
    assert patched(original, {"metadata": {"finalizers": ["c", "a"]}})["metadata"]["finalizers"] == ["c", "a", "b"]


def test_delete_from_primitive_list() -> None:
    original = {"metadata": {"finalizers": ["a", "b"]}}
    outcome = patched(original, {"metadata": {"$deleteFromPrimitiveList/finalizers": ["a", "z"]}})
    assert outcome["metadata"]["finalizers"] == ["b"]


def test_set_element_order() -> None:
    patch = {"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}}
    assert names(patched(pod(A, B, C), patch)) == ["b", "a", "c"]
    patch = {"metadata": {"$setElementOrder/finalizers": ["b", "a"]}}
    assert patched({"metadata": {"finalizers": ["a", "b"]}}, patch)["metadata"]["finalizers"] == ["b", "a"]


def test_ports_of_a_service_merge_by_number() -> None:
    original = {"spec": {"ports": [{"port": 80, "targetPort": 80, "name": "a"}]}}
    outcome = patched(original, {"spec": {"ports": [{"port": 80, "targetPort": 8080}]}}, SERVICE)
    assert outcome["spec"]["ports"] == [{"port": 80, "targetPort": 8080, "name": "a"}]


@pytest.mark.parametrize(
    ("patch", "code", "message"),
    [
        ({"metadata": {"labels": {"$patch": "shake"}}}, 500, "unknown patch type: shake in map: map[$patch:shake]"),
        (containers({"image": "x"}), 500, "map: map[image:x] does not contain declared merge key: name"),
        (containers({"name": "a", "$patch": "merge"}), 500, "merging lists cannot yet be specified in the patch"),
        (
            containers({"name": "y", "image": "z:1"}, **{"$setElementOrder/containers": [{"name": "z"}]}),
            500,
            "The order in patch list:\n[map[image:z:1 name:y]]\n doesn't match $setElementOrder list:\n[map[name:z]]\n",
        ),
        ({"spec": {"$retainKeys": "x"}}, 400, "invalid patch format of retainKeys"),
        ({"metadata": {"$deleteFromPrimitiveList": ["a"]}}, 400, "invalid patch format of primitive list"),
    ],
)
def test_errors(patch: dict[str, Any], code: int, message: str) -> None:
    original = pod(A)
    original["metadata"]["labels"] = {"l": "1"}
    with pytest.raises(StatusError) as caught:
        strategic_merge_patch(original, patch, POD)
    assert (caught.value.code, caught.value.message) == (code, message)


def test_custom_resources_have_no_strategy() -> None:
    with pytest.raises(StatusError) as caught:
        strategic_merge_patch({}, {}, GVK("example.com", "v1", "Widget"))
    assert caught.value.code == 415
