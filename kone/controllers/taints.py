"""Taints and tolerations, as eviction, node lifecycle and DaemonSets judge them (component-helpers' corev1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kone.apimachinery.objects import Object, dig

NOT_READY = "node.kubernetes.io/not-ready"
UNREACHABLE = "node.kubernetes.io/unreachable"
UNSCHEDULABLE = "node.kubernetes.io/unschedulable"
MEMORY_PRESSURE = "node.kubernetes.io/memory-pressure"
DISK_PRESSURE = "node.kubernetes.io/disk-pressure"
PID_PRESSURE = "node.kubernetes.io/pid-pressure"
NETWORK_UNAVAILABLE = "node.kubernetes.io/network-unavailable"
OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"


def taints_of(node: Object) -> list[Object]:
    return list(dig(node, "spec", "taints", default=()))


def with_effect(taints: Iterable[Object], *effects: str) -> list[Object]:
    return [taint for taint in taints if taint.get("effect") in effects]


def tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    """Toleration.ToleratesTaint: an empty effect or key matches all; Exists asks for no value."""
    if toleration.get("effect") and toleration["effect"] != taint.get("effect"):
        return False
    if toleration.get("key") and toleration["key"] != taint.get("key"):
        return False
    operator = toleration.get("operator") or "Equal"
    if operator == "Exists":
        return True
    own, wanted = toleration.get("value") or "", taint.get("value") or ""
    if operator == "Equal":
        return bool(own == wanted)
    numbers = _number(wanted), _number(own)
    if numbers[0] is None or numbers[1] is None:
        return False
    return numbers[0] < numbers[1] if operator == "Lt" else operator == "Gt" and numbers[0] > numbers[1]


def _number(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def tolerated_by(tolerations: Iterable[Mapping[str, Any]], taint: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Those of the tolerations that tolerate the taint."""
    return [toleration for toleration in tolerations if tolerates(toleration, taint)]


def tolerated_for_s(tolerations: Iterable[Mapping[str, Any]], taints: Iterable[Mapping[str, Any]]) -> float:
    """How long a pod may stay with these taints: 0 where one is not tolerated, infinity where all are for ever.

    Of the tolerations that matter the shortest counts (tainteviction.getMinTolerationTime).
    """
    tolerations, shortest = list(tolerations), float("inf")
    for taint in taints:
        used = tolerated_by(tolerations, taint)
        if not used:
            return 0.0
        for toleration in used:
            if (seconds := toleration.get("tolerationSeconds")) is not None:
                shortest = min(shortest, max(0.0, float(seconds)))
    return shortest
