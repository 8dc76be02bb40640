"""In-place resize: what a pod was given, what it asks for now, and whether the node can give it (KEP 1287). Pure.

A pod's spec says what is desired. What was allocated to it changes only when the node has room; until then the pod
goes on with what it has, and a condition says why.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from kone.apimachinery.objects import Object, dig, generation_of, replace_in
from kone.apimachinery.pod_resources import amounts, pod_requests
from kone.runtime.pod_admit import refuse_resources
from kone.runtime.pod_spec import all_containers, init_containers, regular_containers

Allocated = Mapping[str, Object]
"""Container name -> its resources ({"requests", "limits"}) as they were given."""


@dataclass(frozen=True, slots=True)
class Pending:
    """Why a resize is not done: never possible on this node, or not now."""

    reason: Literal["Infeasible", "Deferred"]
    message: str


def asked_resources(pod: Object) -> dict[str, Object]:
    """What the spec asks for."""
    return {c["name"]: _resources(c) for kind, c in all_containers(pod) if kind != "ephemeral"}


def allocated_before(pod: Object) -> dict[str, Object]:
    """What a pod that a former kone started was given, as its status tells; the spec's where it does not."""
    found = asked_resources(pod)
    for field in ("containerStatuses", "initContainerStatuses"):
        for status in dig(pod, "status", field, default=()):
            requests, limits = status.get("allocatedResources"), dig(status, "resources", "limits")
            if status["name"] in found and (requests or limits):
                found[status["name"]] = {k: v for k, v in (("limits", limits), ("requests", requests)) if v}
    return found


def is_resized(pod: Object, allocated: Allocated) -> bool:
    """Whether the spec asks for something else than was given."""
    return any(
        _amounts(resources) != _amounts(allocated.get(name, resources))
        for name, resources in asked_resources(pod).items()
    )


def with_allocated(pod: Object, allocated: Allocated) -> Object:
    """The pod as it was given; the pod itself where that is what it asks for."""
    if not is_resized(pod, allocated):
        return pod
    changed = pod
    for field, containers in (("containers", regular_containers(pod)), ("initContainers", init_containers(pod))):
        if containers:
            given = [replace_in(c, ("resources",), allocated.get(c["name"], _resources(c))) for c in containers]
            changed = replace_in(changed, ("spec", field), given)
    return changed


def pending(pod: Object, node: Object, others: Sequence[Object]) -> Pending | None:
    """Why the node cannot give what the pod asks for, None where it can."""
    allocatable = amounts(dig(node, "status", "allocatable"))
    requested = pod_requests(pod)
    for name in ("cpu", "memory"):
        if name in allocatable and requested.get(name, 0) > allocatable[name]:
            figures = f"requested: {requested[name]}, capacity: {allocatable[name]}"
            return Pending("Infeasible", f"Node didn't have enough capacity: {name}, {figures}")
    refused = refuse_resources(pod, node, others)
    return Pending("Deferred", refused.message) if refused is not None else None


def resize_condition(kind: str, pod: Object, reason: str = "", message: str = "") -> Object:
    """PodResizePending or PodResizeInProgress, without its time."""
    found: Object = {"type": kind, "status": "True"}
    if reason:
        found["reason"] = reason
    if message:
        found["message"] = message
    if generation_of(pod):
        found["observedGeneration"] = generation_of(pod)
    return found


def resize_message(prefix: str, pod: Object, error: str = "") -> str:
    """The text of a resize event: a prefix and the resources by container as JSON."""
    summary: Object = {}
    for field, containers in (("initContainers", init_containers(pod)), ("containers", regular_containers(pod))):
        if containers:
            summary[field] = [{"name": c["name"], "resources": _resources(c)} for c in containers]
    summary["generation"] = generation_of(pod)
    if error:
        summary["error"] = error
    return f"{prefix}: {json.dumps(summary, separators=(',', ':'))}"


def _resources(container: Object) -> Object:
    found: Object = container.get("resources") or {}
    return {key: found[key] for key in ("limits", "requests") if found.get(key)}


def _amounts(resources: Object) -> tuple[dict[str, int], dict[str, int]]:
    return amounts(resources.get("requests")), amounts(resources.get("limits"))
