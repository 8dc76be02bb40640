"""What objects cost against a ResourceQuota, and which objects a quota speaks of: common to the admission that refuses
and the controller that tells (apiserver/pkg/quota, pkg/quota/v1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from kone.apimachinery.kinds import GVR
from kone.apimachinery.objects import Object, dig, is_deleting, is_pod_terminal, resource_version_of, uid_of
from kone.apimachinery.pod_resources import Amounts, pod_requests, qos_class
from kone.apimachinery.pod_resources import amounts as pod_amounts
from kone.apimachinery.quantity import Notation, Quantity, parse_quantity
from kone.apimachinery.timestamps import parse_time
from kone.apimachinery.volume_claims import class_of

Usage = dict[str, Quantity]
Scope = Mapping[str, Any]
"""A requirement of a quota: scopeName, operator, values."""

IGNORED = frozenset(
    {
        ("", "bindings"),
        ("", "componentstatuses"),
        ("", "events"),
        ("events.k8s.io", "events"),
        ("authentication.k8s.io", "tokenreviews"),
        ("authentication.k8s.io", "selfsubjectreviews"),
        ("authorization.k8s.io", "subjectaccessreviews"),
        ("authorization.k8s.io", "selfsubjectaccessreviews"),
        ("authorization.k8s.io", "localsubjectaccessreviews"),
        ("authorization.k8s.io", "selfsubjectrulesreviews"),
    }
)
"""(group, resource) of what no quota counts."""

_ALIASES = {
    ("", "configmaps"): "configmaps",
    ("", "resourcequotas"): "resourcequotas",
    ("", "replicationcontrollers"): "replicationcontrollers",
    ("", "secrets"): "secrets",
}
_ONE = Quantity.of(1)


@dataclass(frozen=True, slots=True)
class Evaluator:
    """How objects of one resource are counted."""

    resource: GVR
    matching: Callable[[Iterable[str]], list[str]]
    """Those of a quota's names that objects of this resource count against."""
    usage: Callable[[Object, float], Usage]
    """What one object costs at that time."""
    in_scope: Callable[[Scope, Object], bool]


def evaluator_of(resource: GVR) -> Evaluator:
    """Pods, services and claims (of volumes, of devices) cost in several ways; of all else the objects are counted."""
    special = _SPECIAL.get((resource.group, resource.resource))
    if special is not None:
        return Evaluator(resource, *special)
    counted = [count_name(resource), *_alias(resource)]

    def matching(names: Iterable[str]) -> list[str]:
        return [name for name in names if name in counted]

    return Evaluator(resource, matching, lambda obj, now: dict.fromkeys(counted, _ONE), lambda scope, obj: False)


def count_name(resource: GVR) -> str:
    return f"count/{resource.group_resource}"


def _alias(resource: GVR) -> list[str]:
    alias = _ALIASES.get((resource.group, resource.resource))
    return [alias] if alias else []


def scopes_of(quota: Object) -> list[Scope]:
    """All of which an object must be in to count."""
    plain = [{"scopeName": scope, "operator": "Exists"} for scope in dig(quota, "spec", "scopes", default=())]
    return [*plain, *dig(quota, "spec", "scopeSelector", "matchExpressions", default=())]


def counts(quota: Object, evaluator: Evaluator, obj: Object) -> bool:
    return all(evaluator.in_scope(scope, obj) for scope in scopes_of(quota))


def amounts(resources: Mapping[str, Any] | None) -> Usage:
    return {name: parse_quantity(value) for name, value in (resources or {}).items()}


def texts(usage: Mapping[str, Quantity]) -> dict[str, str]:
    return {name: str(amount) for name, amount in usage.items()}


# Pods

_POD_NAMES = frozenset(
    {
        "count/pods",
        "pods",
        *(f"{side}{name}" for side in ("", "requests.", "limits.") for name in ("cpu", "memory", "ephemeral-storage")),
    }
)
_HUGE_PAGES = "hugepages-"


def _pod_matching(names: Iterable[str]) -> list[str]:
    return [
        name
        for name in names
        if name in _POD_NAMES or name.removeprefix("requests.").startswith(_HUGE_PAGES) or _is_extended(name)
    ]


def _is_extended(name: str) -> bool:
    """requests.<what no node has by itself>."""
    if not name.startswith("requests."):
        return False
    return not _is_native(name) or name.startswith("requests.deviceclass.resource.kubernetes.io/")


def _is_native(name: str) -> bool:
    return "/" not in name or "kubernetes.io/" in name


def is_alive(pod: Object, now: float) -> bool:
    """Neither finished nor past the end of its grace: what is stuck on a lost node costs nothing."""
    if is_pod_terminal(pod):
        return False
    grace = dig(pod, "metadata", "deletionGracePeriodSeconds")
    if is_deleting(pod) and grace is not None:
        return now <= parse_time(pod["metadata"]["deletionTimestamp"]) + float(grace)
    return True


def _pod_usage(pod: Object, now: float) -> Usage:
    usage: Usage = {"count/pods": _ONE}
    if not is_alive(pod, now):
        return usage
    usage["pods"] = _ONE
    for name, amount in pod_requests(pod).items():
        asked = _quantity(pod, "requests", name, amount)
        if name in ("cpu", "memory", "ephemeral-storage") or name.startswith(_HUGE_PAGES):
            usage[name] = usage[f"requests.{name}"] = asked
        elif not _is_native(name) or name.startswith("deviceclass.resource.kubernetes.io/"):
            usage[f"requests.{name}"] = asked
    for name, amount in _limits(pod).items():
        if name in ("cpu", "memory", "ephemeral-storage"):
            usage[f"limits.{name}"] = _quantity(pod, "limits", name, amount)
    return usage


def _limits(pod: Object) -> Amounts:
    """The sum of the limits that there are, whether or not every container has one."""
    spec = pod["spec"]

    def swapped(holder: Mapping[str, Any]) -> Object:
        return {**holder, "resources": {"requests": dig(holder, "resources", "limits")}}

    parts = {kind: [swapped(c) for c in spec.get(kind) or ()] for kind in ("containers", "initContainers")}
    found = pod_requests({"spec": {**swapped(spec), **parts, "overhead": None}})
    overhead = pod_amounts(spec.get("overhead"))
    return {name: amount + overhead.get(name, 0) for name, amount in found.items()}


def _quantity(pod: Object, side: str, name: str, amount: int) -> Quantity:
    """The sum in the notation of the first container that says something."""
    spec = pod["spec"]
    holders = [spec, *(spec.get("containers") or ()), *(spec.get("initContainers") or ())]
    found = (dig(holder, "resources", side, name) for holder in holders)
    notation: Notation = next((parse_quantity(text).notation for text in found if text is not None), "DecimalSI")
    return Quantity.of_milli(amount, notation) if name == "cpu" else Quantity.of(amount, notation)


def is_terminating(pod: Object) -> bool:
    """In the sense of quota scopes: sure to end by itself."""
    return int(dig(pod, "spec", "activeDeadlineSeconds", default=-1)) >= 0


def _pod_in_scope(scope: Scope, pod: Object) -> bool:
    name = scope.get("scopeName")
    if name in ("Terminating", "NotTerminating"):
        return is_terminating(pod) is bool(name == "Terminating")
    if name in ("BestEffort", "NotBestEffort"):
        quality = dig(pod, "status", "qosClass") or qos_class(pod)
        return (quality == "BestEffort") is bool(name == "BestEffort")
    if name == "PriorityClass":
        return _selects(scope, [given] if (given := dig(pod, "spec", "priorityClassName", default="")) else [])
    return name == "CrossNamespacePodAffinity" and _looks_into_other_namespaces(pod)


def _selects(scope: Scope, values: list[str]) -> bool:
    """Whether a value of an object is what the scope asks for; several are looked at each."""
    operator, wanted = scope.get("operator"), scope.get("values") or ()
    if operator == "Exists":
        return bool(values)
    if operator == "DoesNotExist":
        return not values
    if operator == "In":
        return any(value in wanted for value in values)
    return operator == "NotIn" and (not values or any(value not in wanted for value in values))


def _looks_into_other_namespaces(pod: Object) -> bool:
    for kind in ("podAffinity", "podAntiAffinity"):
        affinity = dig(pod, "spec", "affinity", kind, default={})
        weighted = affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or ()
        terms = [
            *(affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or ()),
            *(term.get("podAffinityTerm") or {} for term in weighted),
        ]
        if any(term.get("namespaces") or term.get("namespaceSelector") is not None for term in terms):
            return True
    return False


# Services


_SERVICE_NAMES = frozenset({"count/services", "services", "services.nodeports", "services.loadbalancers"})


def _service_matching(names: Iterable[str]) -> list[str]:
    return [name for name in names if name in _SERVICE_NAMES]


def _service_usage(service: Object, now: float) -> Usage:
    spec = service.get("spec") or {}
    ports = spec.get("ports") or ()
    node_ports = balancers = 0
    if spec.get("type") == "NodePort":
        node_ports = len(ports)
    elif spec.get("type") == "LoadBalancer":
        balancers = 1
        # Ports are allocated later, so the intention counts, unless only those are to be had that are named.
        spared = spec.get("allocateLoadBalancerNodePorts") is False
        node_ports = sum(bool(port.get("nodePort")) for port in ports) if spared else len(ports)
    return {
        "count/services": _ONE,
        "services": _ONE,
        "services.nodeports": Quantity.of(node_ports),
        "services.loadbalancers": Quantity.of(balancers),
    }


# Claims

_CLAIM_NAMES = ("persistentvolumeclaims", "requests.storage")
_BY_CLASS = ".storageclass.storage.k8s.io/"


def _claim_matching(names: Iterable[str]) -> list[str]:
    suffixes = tuple(_BY_CLASS + name for name in _CLAIM_NAMES)
    return [
        name
        for name in names
        if name in _CLAIM_NAMES or name == "count/persistentvolumeclaims" or name.endswith(suffixes)
    ]


def _claim_usage(claim: Object, now: float) -> Usage:
    usage: Usage = {"count/persistentvolumeclaims": _ONE, "persistentvolumeclaims": _ONE}
    storage = _storage(claim)
    if storage is not None:
        usage["requests.storage"] = storage
    if class_name := class_of(claim):
        usage |= {f"{class_name}{_BY_CLASS}{name}": usage[name] for name in _CLAIM_NAMES if name in usage}
    return usage


def _storage(claim: Object) -> Quantity | None:
    """What is asked for, or what an expansion under way has taken already; whole bytes."""
    asked = dig(claim, "spec", "resources", "requests", "storage")
    if asked is None:
        return None
    amount = parse_quantity(asked)
    allocated = dig(claim, "status", "allocatedResources", "storage")
    if allocated is not None:
        amount = max(amount, parse_quantity(allocated))
    return Quantity.of(amount.value(), amount.notation)


def attribute_classes(claim: Object) -> list[str]:
    """Every VolumeAttributesClass that the claim names, wants or has."""
    found = [
        dig(claim, "spec", "volumeAttributesClassName"),
        dig(claim, "status", "modifyVolumeStatus", "targetVolumeAttributesClassName"),
        dig(claim, "status", "currentVolumeAttributesClassName"),
    ]
    return sorted({name for name in found if name})


def _claim_in_scope(scope: Scope, claim: Object) -> bool:
    return scope.get("scopeName") == "VolumeAttributesClass" and _selects(scope, attribute_classes(claim))


# Claims of devices

_DEVICES_OF_CLASS = ".deviceclass.resource.k8s.io/devices"
_COUNT_OF_DEVICE_CLAIMS = "count/resourceclaims.resource.k8s.io"
_ALL_DEVICES = 32  # what a claim for all devices may get at most


def _device_claim_matching(names: Iterable[str]) -> list[str]:
    return [name for name in names if name == _COUNT_OF_DEVICE_CLAIMS or name.endswith(_DEVICES_OF_CLASS)]


def _device_claim_usage(claim: Object, now: float) -> Usage:
    """The devices of each class; of alternatives, for each class, the one that asks for most."""
    devices: dict[str, int] = {}
    for request in dig(claim, "spec", "devices", "requests", default=()):
        most: dict[str, int] = {}
        for asked in request.get("firstAvailable") or [request.get("exactly") or {}]:
            if name := asked.get("deviceClassName"):
                count = _ALL_DEVICES if asked.get("allocationMode") == "All" else int(asked.get("count") or 1)
                most[name] = max(count, most.get(name, 0))
        for name, count in most.items():
            devices[name] = devices.get(name, 0) + count
    usage = {f"{name}{_DEVICES_OF_CLASS}": Quantity.of(count) for name, count in devices.items()}
    return {_COUNT_OF_DEVICE_CLAIMS: _ONE, **usage}


_SPECIAL: Mapping[tuple[str, str], tuple[Any, Any, Any]] = {
    ("", "pods"): (_pod_matching, _pod_usage, _pod_in_scope),
    ("", "services"): (_service_matching, _service_usage, lambda scope, obj: False),
    ("", "persistentvolumeclaims"): (_claim_matching, _claim_usage, _claim_in_scope),
    ("resource.k8s.io", "resourceclaims"): (_device_claim_matching, _device_claim_usage, lambda scope, obj: False),
}


# Counting

_REMEMBERED = 50_000


class Costs:
    """Remembers what objects that are stored cost, version by version: most have not changed since the last count."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, Usage]] = {}  # version and cost by uid

    def remembered(self, evaluator: Evaluator) -> Evaluator:
        """The evaluator, for objects of which no two of one version differ."""
        return replace(evaluator, usage=lambda obj, now: self._usage(evaluator, obj, now))

    def _usage(self, evaluator: Evaluator, obj: Object, now: float) -> Usage:
        uid, version = uid_of(obj), resource_version_of(obj)
        known = self._known.get(uid)
        if known is not None and known[0] == version:
            return known[1]
        usage = evaluator.usage(obj, now)
        if version and not is_deleting(obj):  # what is being deleted may cost less as time goes by
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[uid] = version, usage
        return usage


def total(quota: Object, evaluator: Evaluator, objects: Iterable[Object], now: float) -> Usage:
    """What the objects cost together, for those of the quota's names that they count against; in the notation of the
    first that costs something."""
    sums = dict.fromkeys(evaluator.matching(dig(quota, "spec", "hard", default={})), 0)
    notations: dict[str, Notation] = {}
    scopes = scopes_of(quota)
    for obj in objects:
        if scopes and not all(evaluator.in_scope(scope, obj) for scope in scopes):
            continue
        usage = evaluator.usage(obj, now)
        for name in sums:
            if (cost := usage.get(name)) is not None and cost.nanos:
                notations.setdefault(name, cost.notation)
                sums[name] += cost.nanos
    return {name: Quantity(nanos, notations.get(name, "DecimalSI")) for name, nanos in sums.items()}
