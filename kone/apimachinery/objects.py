"""API objects are plain JSON dicts, read-only once committed; these are the words to speak of them.

What you did not make, you copy: `replace_in(pod, ("status", "phase"), "Running")` copies only the path it changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kone.apimachinery.kinds import GVK, parse_api_version

Object = dict[str, Any]


class Key(NamedTuple):
    """A namespaced name; the namespace of a cluster-scoped object is ""."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


def metadata(obj: Mapping[str, Any]) -> Object:
    """The object's metadata; {} where there is none (do not write to it)."""
    return obj.get("metadata") or {}


def name_of(obj: Mapping[str, Any]) -> str:
    return str(metadata(obj).get("name", ""))


def namespace_of(obj: Mapping[str, Any]) -> str:
    return str(metadata(obj).get("namespace", ""))


def key_of(obj: Mapping[str, Any]) -> Key:
    return Key(namespace_of(obj), name_of(obj))


def uid_of(obj: Mapping[str, Any]) -> str:
    return str(metadata(obj).get("uid", ""))


def resource_version_of(obj: Mapping[str, Any]) -> str:
    return str(metadata(obj).get("resourceVersion", ""))


def generation_of(obj: Mapping[str, Any]) -> int:
    return int(metadata(obj).get("generation", 0))


def labels_of(obj: Mapping[str, Any]) -> dict[str, str]:
    return metadata(obj).get("labels") or {}


def annotations_of(obj: Mapping[str, Any]) -> dict[str, str]:
    return metadata(obj).get("annotations") or {}


def gvk_of(obj: Mapping[str, Any]) -> GVK:
    group, version = parse_api_version(obj.get("apiVersion", ""))
    return GVK(group, version, obj.get("kind", ""))


def is_deleting(obj: Mapping[str, Any]) -> bool:
    return bool(metadata(obj).get("deletionTimestamp"))


def owner_references(obj: Mapping[str, Any]) -> list[Object]:
    return metadata(obj).get("ownerReferences") or []


def controller_of(obj: Mapping[str, Any]) -> Object | None:
    """The owner reference that controls the object (metav1.GetControllerOf)."""
    return next((ref for ref in owner_references(obj) if ref.get("controller")), None)


def is_controlled_by(obj: Mapping[str, Any], owner: Mapping[str, Any]) -> bool:
    ref = controller_of(obj)
    return ref is not None and ref.get("uid") == uid_of(owner)


def controller_reference(owner: Mapping[str, Any]) -> Object:
    """The owner reference that a controller puts on what it makes (metav1.NewControllerRef)."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": name_of(owner),
        "uid": uid_of(owner),
        "controller": True,
        "blockOwnerDeletion": True,
    }


def dig(obj: Any, *path: str | int, default: Any = None) -> Any:
    """The value at `path`, or `default` where any step of it is missing or null."""
    for step in path:
        if isinstance(step, str):
            obj = obj.get(step) if isinstance(obj, Mapping) else None
        else:
            obj = obj[step] if isinstance(obj, Sequence) and -len(obj) <= step < len(obj) else None
        if obj is None:
            return default
    return obj


def replace_in(obj: Mapping[str, Any], path: Sequence[str], value: Any) -> Object:
    """A copy of `obj` with `value` at `path`, sharing every part beside the path; missing dicts on the way are made."""
    head, *rest = path
    copy = dict(obj)
    copy[head] = replace_in(copy.get(head) or {}, rest, value) if rest else value
    return copy


def has_finalizer(obj: Mapping[str, Any], finalizer: str) -> bool:
    return finalizer in (metadata(obj).get("finalizers") or ())


def other_finalizers(obj: Mapping[str, Any], finalizer: str) -> list[str]:
    """All but this one."""
    return [name for name in metadata(obj).get("finalizers") or () if name != finalizer]


def with_finalizer(obj: Mapping[str, Any], finalizer: str) -> Object:
    return replace_in(obj, ("metadata", "finalizers"), [*(metadata(obj).get("finalizers") or ()), finalizer])


def without_finalizer(obj: Mapping[str, Any], finalizer: str) -> Object:
    return replace_in(obj, ("metadata", "finalizers"), other_finalizers(obj, finalizer))


def remove_in(obj: Mapping[str, Any], path: Sequence[str]) -> Object:
    """A copy of `obj` without the value at `path`."""
    head, *rest = path
    copy = dict(obj)
    if not rest:
        copy.pop(head, None)
    elif isinstance(copy.get(head), Mapping):
        copy[head] = remove_in(copy[head], rest)
    return copy


def deep_copy(value: Any) -> Any:
    """A copy of JSON data that shares nothing that could be written to."""
    if isinstance(value, dict):
        return {k: deep_copy(v) for k, v in value.items()}
    if isinstance(value, list):
        return [deep_copy(v) for v in value]
    return value


def find_condition(obj: Mapping[str, Any], kind: str) -> Object | None:
    """The condition of that type in status.conditions."""
    return next((c for c in dig(obj, "status", "conditions", default=()) if c.get("type") == kind), None)


def other_conditions(obj: Mapping[str, Any], kind: str) -> list[Object]:
    """What status.conditions has of all other types."""
    return [c for c in dig(obj, "status", "conditions", default=()) if c.get("type") != kind]


def is_condition_true(obj: Mapping[str, Any], kind: str) -> bool:
    condition = find_condition(obj, kind)
    return condition is not None and condition.get("status") == "True"


def is_pod_ready(pod: Mapping[str, Any]) -> bool:
    return is_condition_true(pod, "Ready")


def is_pod_terminal(pod: Mapping[str, Any]) -> bool:
    return dig(pod, "status", "phase") in ("Succeeded", "Failed")


def is_pod_active(pod: Mapping[str, Any]) -> bool:
    """Neither finished nor being deleted (controller.IsPodActive)."""
    return not is_pod_terminal(pod) and not is_deleting(pod)
