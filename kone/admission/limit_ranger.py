"""LimitRanger: a namespace's LimitRanges give containers their defaults and hold pods and claims within bounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kone.admission.plugin import Attributes, Caches, Plugin
from kone.apimachinery.objects import Object, annotations_of, dig, is_deleting
from kone.apimachinery.quantity import ZERO, Quantity, parse_quantity

ANNOTATION = "kubernetes.io/limit-ranger"
PODS = ("", "pods")
CLAIMS = ("", "persistentvolumeclaims")

Quantities = dict[str, Quantity]


class LimitRanger(Plugin):
    name = "LimitRanger"
    resources = frozenset({PODS, CLAIMS})
    subresources = frozenset({"", "resize"})

    def __init__(self, caches: Caches) -> None:
        self._ranges = caches.of("", "limitranges")

    def handles(self, a: Attributes) -> bool:
        if not super().handles(a):
            return False
        if a.subresource == "resize":
            return a.group_resource == PODS and a.operation == "UPDATE"
        # What a LimitRange speaks of cannot be changed by a plain update of a pod.
        return a.group_resource == CLAIMS or a.operation == "CREATE"

    async def mutate(self, a: Attributes) -> None:
        if a.group_resource != PODS or (a.old is not None and is_deleting(a.old)):
            return
        for entry in self._ranges.list(a.namespace):
            _set_defaults(a.object, entry.obj)

    async def validate(self, a: Attributes) -> None:
        if a.old is not None and is_deleting(a.old):
            return
        check = _pod_findings if a.group_resource == PODS else _claim_findings
        for entry in self._ranges.list(a.namespace):
            findings = list(dict.fromkeys(check(entry.obj, a.object)))
            if findings:
                raise a.refuse(findings[0] if len(findings) == 1 else "[" + ", ".join(findings) + "]")


def _set_defaults(pod: Object, limit_range: Object) -> None:
    requests: dict[str, str] = {}
    limits: dict[str, str] = {}
    for item in dig(limit_range, "spec", "limits", default=()):
        if item.get("type") == "Container":
            requests |= item.get("defaultRequest") or {}
            limits |= item.get("default") or {}
    notes: list[str] = []
    for kind, title in (("containers", "container"), ("initContainers", "init container")):
        for container in pod["spec"].get(kind) or ():
            for side, defaults in (("requests", requests), ("limits", limits)):
                given = dig(container, "resources", side, default={})
                missing = {name: amount for name, amount in defaults.items() if name not in given}
                if missing:
                    container["resources"] = {**(container.get("resources") or {}), side: {**given, **missing}}
                    notes.append(f"{', '.join(sorted(missing))} {side[:-1]} for {title} {container.get('name', '')}")
    if notes:
        text = "LimitRanger plugin set: " + "; ".join(notes)
        pod["metadata"]["annotations"] = {**annotations_of(pod), ANNOTATION: text}


def _pod_findings(limit_range: Object, pod: Object) -> Iterator[str]:
    spec = pod["spec"]
    for item in dig(limit_range, "spec", "limits", default=()):
        kind = item.get("type", "")
        if kind == "Container":
            for container in (*(spec.get("containers") or ()), *(spec.get("initContainers") or ())):
                yield from _findings(item, kind, *_sides(container.get("resources")))
        elif kind == "Pod":
            yield from _findings(item, kind, _pod_sum(spec, "requests"), _pod_sum(spec, "limits"))


def _claim_findings(limit_range: Object, claim: Object) -> Iterator[str]:
    requests, _ = _sides(dig(claim, "spec", "resources"))
    for item in dig(limit_range, "spec", "limits", default=()):
        kind = item.get("type", "")
        if kind != "PersistentVolumeClaim":
            continue
        for name, bound in _bounds(item, "min"):
            if finding := _below(kind, name, bound, requests, {}):
                yield finding
        for name, bound in _bounds(item, "max"):
            asked = requests.get(name)
            if asked is None:
                yield f"maximum {name} usage per {kind} is {bound}.  No request is specified"
            elif asked > bound:
                yield f"maximum {name} usage per {kind} is {bound}, but request is {asked}"


def _findings(item: Object, kind: str, requests: Quantities, limits: Quantities) -> Iterator[str]:
    checks = (("min", _below), ("max", _above), ("maxLimitRequestRatio", _beyond_ratio))
    for which, check in checks:
        for name, bound in _bounds(item, which):
            if finding := check(kind, name, bound, requests, limits):
                yield finding


def _below(kind: str, name: str, bound: Quantity, requests: Quantities, limits: Quantities) -> str:
    request, limit = requests.get(name), limits.get(name)
    if request is None:
        return f"minimum {name} usage per {kind} is {bound}.  No request is specified"
    if request < bound:
        return f"minimum {name} usage per {kind} is {bound}, but request is {request}"
    if limit is not None and limit < bound:
        return f"minimum {name} usage per {kind} is {bound}, but limit is {limit}"
    return ""


def _above(kind: str, name: str, bound: Quantity, requests: Quantities, limits: Quantities) -> str:
    request, limit = requests.get(name), limits.get(name)
    if limit is None:
        return f"maximum {name} usage per {kind} is {bound}.  No limit is specified"
    if limit > bound:
        return f"maximum {name} usage per {kind} is {bound}, but limit is {limit}"
    if request is not None and request > bound:
        return f"maximum {name} usage per {kind} is {bound}, but request is {request}"
    return ""


def _beyond_ratio(kind: str, name: str, bound: Quantity, requests: Quantities, limits: Quantities) -> str:
    request, limit = requests.get(name), limits.get(name)
    what = f"{name} max limit to request ratio per {kind} is {bound}"
    if request is None or request.is_zero:
        return f"{what}, but no request is specified or request is 0"
    if limit is None or limit.is_zero:
        return f"{what}, but no limit is specified or limit is 0"
    ratio = limit.nanos / request.nanos
    if ratio * 1000 > bound.milli():
        return f"{what}, but provided ratio is {ratio:.6f}"
    return ""


def _bounds(item: Object, which: str) -> Iterator[tuple[str, Quantity]]:
    for name, text in sorted((item.get(which) or {}).items()):
        yield name, parse_quantity(text)


def _sides(resources: Mapping[str, Any] | None) -> tuple[Quantities, Quantities]:
    found = resources or {}
    return _quantities(found.get("requests")), _quantities(found.get("limits"))


def _quantities(amounts_by_name: Mapping[str, Any] | None) -> Quantities:
    return {name: parse_quantity(text) for name, text in (amounts_by_name or {}).items()}


def _pod_sum(spec: Object, side: str) -> Quantities:
    """What the pod's containers add up to, init containers by their peak, pod-level resources before the sum."""

    def of(container: Object) -> Quantities:
        return _quantities(dig(container, "resources", side))

    total: Quantities = {}
    for container in spec.get("containers") or ():
        _add(total, of(container))
    sidecars: Quantities = {}
    peak: Quantities = {}
    for container in spec.get("initContainers") or ():
        if container.get("restartPolicy") == "Always":
            _add(total, of(container))
            _add(sidecars, of(container))
            _raise(peak, sidecars)
        else:
            together = dict(sidecars)
            _add(together, of(container))
            _raise(peak, together)
    _raise(total, peak)
    pod_level = _quantities(dig(spec, "resources", side))
    return total | {name: amount for name, amount in pod_level.items() if name in ("cpu", "memory")}


def _add(total: Quantities, more: Quantities) -> None:
    for name, amount in more.items():
        total[name] = total.get(name, ZERO) + amount


def _raise(total: Quantities, least: Quantities) -> None:
    for name, amount in least.items():
        if name not in total or amount > total[name]:
            total[name] = amount
