"""RuntimeClass: a pod that names a class gets its overhead, node selector and tolerations."""

from __future__ import annotations

from typing import Any

from kone.admission.plugin import Attributes, Caches, Plugin
from kone.apimachinery.objects import Object, dig
from kone.apimachinery.quantity import parse_quantity


class RuntimeClass(Plugin):
    name = "RuntimeClass"
    operations = frozenset({"CREATE"})
    resources = frozenset({("", "pods")})

    def __init__(self, caches: Caches) -> None:
        self._classes = caches.of("node.k8s.io", "runtimeclasses")

    async def mutate(self, a: Attributes) -> None:
        spec = a.object["spec"]
        runtime_class = self._class_of(a, spec)
        if runtime_class is None:
            return
        if (overhead := dig(runtime_class, "overhead", "podFixed")) is not None:
            if spec.get("overhead") and not _same_amounts(overhead, spec["overhead"]):
                raise a.refuse("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead")
            spec["overhead"] = dict(overhead)
        if scheduling := runtime_class.get("scheduling"):
            self._set_scheduling(a, spec, scheduling)

    async def validate(self, a: Attributes) -> None:
        spec = a.object["spec"]
        runtime_class = self._class_of(a, spec)
        overhead = dig(runtime_class, "overhead", "podFixed")
        if overhead is not None:
            if not _same_amounts(overhead, spec.get("overhead") or {}):
                raise a.refuse("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead")
        elif spec.get("overhead") is not None:
            raise a.refuse("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead")

    def _class_of(self, a: Attributes, spec: Object) -> Object | None:
        name = spec.get("runtimeClassName")
        if name is None:
            return None
        entry = self._classes.get("", name)
        if entry is None:
            raise a.refuse(f'pod rejected: RuntimeClass "{name}" not found')
        return entry.obj

    def _set_scheduling(self, a: Attributes, spec: Object, scheduling: Object) -> None:
        selector: dict[str, str] = dict(spec.get("nodeSelector") or {})
        for key, value in (scheduling.get("nodeSelector") or {}).items():
            if selector.get(key, value) != value:
                raise a.refuse(
                    f"conflict: runtimeClass.scheduling.nodeSelector[{key}] = {value}; "
                    f"pod.spec.nodeSelector[{key}] = {selector[key]}"
                )
            selector[key] = value
        if selector:
            spec["nodeSelector"] = selector
        have: list[Any] = spec.get("tolerations") or []
        more = [toleration for toleration in scheduling.get("tolerations") or () if toleration not in have]
        if more:
            spec["tolerations"] = [*have, *more]


def _same_amounts(one: Object, other: Object) -> bool:
    return one.keys() == other.keys() and all(parse_quantity(one[k]) == parse_quantity(other[k]) for k in one)
