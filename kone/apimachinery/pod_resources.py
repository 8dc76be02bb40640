"""What a pod asks for and may use, as one sum: the scheduler's and the kubelet's common arithmetic (KEP 753, KEP 2837).

Amounts are integers: "cpu" in thousandths of a core, everything else in its own unit (bytes, devices).

Worked case: containers ask 100m + 200m; a sidecar (restartPolicy Always) asks 50m and starts first; a plain init
container after it asks 400m. While that init container runs the pod needs 50m + 400m = 450m, later it needs
100m + 200m + 50m = 350m: the pod's request is 450m.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from kone.apimachinery.quantity import parse_quantity

Amounts = dict[str, int]
Side = Literal["requests", "limits"]
QosClass = Literal["Guaranteed", "Burstable", "BestEffort"]


def amounts(resources: Mapping[str, Any] | None) -> Amounts:
    """A ResourceList as integers; cpu in thousandths."""
    return {
        name: parse_quantity(value).milli() if name == "cpu" else parse_quantity(value).value()
        for name, value in (resources or {}).items()
    }


def pod_requests(pod: Mapping[str, Any]) -> Amounts:
    """What the scheduler must set aside, overhead included."""
    return _pod_sum(pod["spec"], "requests")


def pod_limits(pod: Mapping[str, Any]) -> Amounts:
    """What the pod may use at most; a resource that some container has no limit for is absent."""
    return _pod_sum(pod["spec"], "limits")


def _pod_sum(spec: Mapping[str, Any], side: Side) -> Amounts:
    containers = [_of(container, side) for container in spec.get("containers") or ()]
    inits = spec.get("initContainers") or ()
    unlimited = _without_limit(spec) if side == "limits" else set[str]()
    total = _add(containers)
    sidecars: Amounts = {}
    peak: Amounts = {}
    for container in inits:
        asked = _of(container, side)
        if container.get("restartPolicy") == "Always":
            sidecars = _add((sidecars, asked))
            peak = _most(peak, sidecars)
        else:
            peak = _most(peak, _add((sidecars, asked)))
    total = _most(_add((total, sidecars)), peak)
    total = {name: amount for name, amount in total.items() if name not in unlimited}
    total |= amounts((spec.get("resources") or {}).get(side))  # pod-level resources win over the sum
    overhead = amounts(spec.get("overhead"))
    return {
        name: total.get(name, 0) + overhead.get(name, 0)
        for name in total.keys() | (overhead.keys() if side == "requests" else set[str]())
    }


def _of(container: Mapping[str, Any], side: Side) -> Amounts:
    return amounts((container.get("resources") or {}).get(side))


def _without_limit(spec: Mapping[str, Any]) -> set[str]:
    """Of cpu and memory, those that a long-running container has no limit for."""
    running = [
        *(spec.get("containers") or ()),
        *(c for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always"),
    ]
    return {name for name in ("cpu", "memory") if any(not _of(c, "limits").get(name) for c in running)}


def _add(parts: Iterable[Amounts]) -> Amounts:
    total: Amounts = {}
    for part in parts:
        for name, amount in part.items():
            total[name] = total.get(name, 0) + amount
    return total


def _most(one: Amounts, other: Amounts) -> Amounts:
    return {name: max(one.get(name, 0), other.get(name, 0)) for name in one.keys() | other.keys()}


def qos_class(pod: Mapping[str, Any]) -> QosClass:
    """The quality of service class (docs, Pod Quality of Service Classes)."""
    spec = pod["spec"]
    holders = [spec] if _has_pod_level(spec) else [*(spec.get("containers") or ()), *(spec.get("initContainers") or ())]
    sides = [(_only_compute(_of(h, "requests")), _only_compute(_of(h, "limits"))) for h in holders]
    if not any(requests or limits for requests, limits in sides):
        return "BestEffort"
    if all(limits.keys() == {"cpu", "memory"} and limits == (limits | requests) for requests, limits in sides):
        return "Guaranteed"
    return "Burstable"


def _has_pod_level(spec: Mapping[str, Any]) -> bool:
    """Whether the pod as a whole asks for something that a pod can be given."""
    names = {*_of(spec, "requests"), *_of(spec, "limits")} if spec.get("resources") else ()
    return any(name in ("cpu", "memory") or name.startswith("hugepages-") for name in names)


def _only_compute(found: Amounts) -> Amounts:
    return {name: amount for name, amount in found.items() if name in ("cpu", "memory") and amount}
