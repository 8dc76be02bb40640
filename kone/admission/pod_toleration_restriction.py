"""PodTolerationRestriction: a namespace's annotations give its pods tolerations, and bound those that they may have.

Where a namespace says nothing, the plugin's configuration does. Pods that are not best effort tolerate memory pressure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kone.admission.plugin import Attributes, Caches, Plugin
from kone.apimachinery.config_files import load, refuse
from kone.apimachinery.errors import FieldError, StatusError, not_found
from kone.apimachinery.objects import annotations_of
from kone.apimachinery.pod_resources import qos_class
from kone.registry.core.pod_scheduling import tolerations as toleration_rules

DEFAULTS = "scheduler.alpha.kubernetes.io/defaultTolerations"
WHITELIST = "scheduler.alpha.kubernetes.io/tolerationsWhitelist"
MEMORY_PRESSURE = {"key": "node.kubernetes.io/memory-pressure", "operator": "Exists", "effect": "NoSchedule"}
API_VERSIONS = ("podtolerationrestriction.admission.k8s.io/v1alpha1",)
_TOLERATION = {"key": str, "operator": str, "value": str, "effect": str, "tolerationSeconds": int}

Toleration = Mapping[str, Any]


class Restriction(NamedTuple):
    """What holds where a namespace says nothing."""

    default: Sequence[Toleration] = ()
    whitelist: Sequence[Toleration] = ()


def parse(text: str) -> Restriction:
    """Raises ConfigFileError."""
    found = load(text, "Configuration", API_VERSIONS, {"default": [_TOLERATION], "whitelist": [_TOLERATION]})
    errors: list[FieldError] = []
    for field in ("default", "whitelist"):
        toleration_rules(errors, field, found.get(field) or ())
    refuse(errors)
    return Restriction(found.get("default") or (), found.get("whitelist") or ())


class PodTolerationRestriction(Plugin):
    name = "PodTolerationRestriction"
    resources = frozenset({("", "pods")})

    def __init__(self, caches: Caches, restriction: Restriction) -> None:
        self._namespaces = caches.of("", "namespaces")
        self._restriction = restriction

    async def mutate(self, a: Attributes) -> None:
        extra: list[Toleration] = []
        if a.operation == "CREATE":
            given = self._given(a, DEFAULTS)
            extra += self._restriction.default if given is None else given
        if qos_class(a.object) != "BestEffort":
            extra.append(MEMORY_PRESSURE)
        if extra:
            spec = a.object["spec"]
            spec["tolerations"] = merge(spec.get("tolerations") or (), extra)
        self._judge(a)

    async def validate(self, a: Attributes) -> None:
        self._judge(a)

    def _judge(self, a: Attributes) -> None:
        """Every toleration is within one of the whitelist, where there is one."""
        tolerations = a.object["spec"].get("tolerations") or ()
        if not tolerations:
            return
        whitelist, scope = self._given(a, WHITELIST), "namespace"
        if whitelist is None:
            whitelist, scope = self._restriction.whitelist, "cluster"
        if whitelist and not all(any(is_superset(each, own) for each in whitelist) for own in tolerations):
            why = "pod tolerations (possibly merged with namespace default tolerations) conflict with its"
            raise StatusError(500, "", f"{why} {scope} whitelist")

    def _given(self, a: Attributes, annotation: str) -> Sequence[Toleration] | None:
        """What the namespace says, None where it says nothing."""
        entry = self._namespaces.get("", a.namespace)
        if entry is None:
            raise not_found("namespaces", a.namespace)
        text = annotations_of(entry.obj).get(annotation)
        if not text:
            return None if text is None else ()
        try:
            found = json.loads(text)
        except ValueError as error:
            raise StatusError(500, "", str(error)) from None
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            kind = {dict: "object", str: "string", bool: "bool"}.get(type(found), "number")
            raise StatusError(500, "", f"json: cannot unmarshal {kind} into Go value of type []v1.Toleration")
        return found


def merge(first: Sequence[Toleration], second: Sequence[Toleration]) -> list[Toleration]:
    """Both, without those that another covers; of two that are equal the first stays (tolerations.MergeTolerations)."""
    everything = [*first, *second]
    merged: list[Toleration] = []
    for i, each in enumerate(everything):
        if any(is_superset(kept, each) for kept in merged):
            continue
        if any(not _equal(later, each) and is_superset(later, each) for later in everything[i + 1 :]):
            continue
        merged.append(each)
    return merged


def is_superset(wide: Toleration, narrow: Toleration) -> bool:
    """Whether whatever `narrow` tolerates is tolerated by `wide`, too (tolerations.isSuperset)."""
    if _equal(wide, narrow):
        return True
    key, operator, effect = (wide.get(name) or "" for name in ("key", "operator", "effect"))
    if (narrow.get("key") or "") != key and (key or operator != "Exists"):
        return False
    if effect and (narrow.get("effect") or "") != effect:
        return False
    longest = wide.get("tolerationSeconds")
    if effect == "NoExecute" and longest is not None:
        seconds = narrow.get("tolerationSeconds")
        if seconds is None or seconds > longest:
            return False
    if operator in ("Equal", ""):
        return narrow.get("operator") == "Equal" and (narrow.get("value") or "") == (wide.get("value") or "")
    return bool(operator == "Exists")


def _equal(one: Toleration, other: Toleration) -> bool:
    strings = ("key", "operator", "value", "effect")
    return all((one.get(name) or "") == (other.get(name) or "") for name in strings) and one.get(
        "tolerationSeconds"
    ) == other.get("tolerationSeconds")
