"""Taints, of nodes and of devices, and who tolerates them: one rule for scheduler, controllers and kubelet.

Source: Toleration.ToleratesTaint (k8s.io/api/core/v1) and resourceclaim.ToleratesTaint, which say the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from kone.apimachinery.objects import Object, dig

NOT_READY: Final = "node.kubernetes.io/not-ready"
UNREACHABLE: Final = "node.kubernetes.io/unreachable"
UNSCHEDULABLE: Final = "node.kubernetes.io/unschedulable"
MEMORY_PRESSURE: Final = "node.kubernetes.io/memory-pressure"
DISK_PRESSURE: Final = "node.kubernetes.io/disk-pressure"
PID_PRESSURE: Final = "node.kubernetes.io/pid-pressure"
NETWORK_UNAVAILABLE: Final = "node.kubernetes.io/network-unavailable"
OUT_OF_SERVICE: Final = "node.kubernetes.io/out-of-service"

UNSCHEDULABLE_TAINT: Final[Mapping[str, Any]] = {"key": UNSCHEDULABLE, "effect": "NoSchedule"}
MEMORY_PRESSURE_TAINT: Final[Mapping[str, Any]] = {"key": MEMORY_PRESSURE, "effect": "NoSchedule"}
KEEPS_AWAY: Final = frozenset({"NoSchedule", "NoExecute"})


def taints_of(node: Object) -> list[Object]:
    return list(dig(node, "spec", "taints", default=()))


def with_effect(taints: Iterable[Object], *effects: str) -> list[Object]:
    return [taint for taint in taints if taint.get("effect") in effects]


def tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    """An empty effect covers all, an empty key with Exists everything."""
    if toleration.get("effect") and toleration["effect"] != taint.get("effect"):
        return False
    if toleration.get("key") and toleration["key"] != taint.get("key"):
        return False
    operator = toleration.get("operator") or "Equal"
    if operator == "Exists":
        return True
    return operator == "Equal" and (toleration.get("value") or "") == (taint.get("value") or "")


def tolerates_any(tolerations: Iterable[Mapping[str, Any]], taint: Mapping[str, Any]) -> bool:
    """Whether one of the tolerations covers the taint."""
    return any(tolerates(toleration, taint) for toleration in tolerations)


def keeps_away(taints: Iterable[Mapping[str, Any]], tolerations: Iterable[Mapping[str, Any]]) -> bool:
    """Whether one of the taints, NoSchedule or NoExecute, is not tolerated."""
    known = list(tolerations)
    return any(taint.get("effect") in KEEPS_AWAY and not tolerates_any(known, taint) for taint in taints)


def tolerated_for_s(tolerations: Iterable[Mapping[str, Any]], taints: Iterable[Mapping[str, Any]]) -> float:
    """How long a pod may stay with these taints: 0 where one is not tolerated, infinity where all are for ever.

    Of the tolerations that matter the shortest counts (tainteviction.getMinTolerationTime).
    """
    known, shortest = list(tolerations), float("inf")
    for taint in taints:
        used = [toleration for toleration in known if tolerates(toleration, taint)]
        if not used:
            return 0.0
        for toleration in used:
            if (seconds := toleration.get("tolerationSeconds")) is not None:
                shortest = min(shortest, max(0.0, float(seconds)))
    return shortest
