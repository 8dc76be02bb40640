"""metrics.k8s.io: what nodes and pods use now. Nothing is stored; what metrics-server serves, under its columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kone.apimachinery.kinds import GVR
from kone.apimachinery.objects import Object
from kone.apimachinery.quantity import Quantity, parse_quantity
from kone.registry.resource import NAME, Column, Resource
from kone.registry.strategy import Strategy

NODE_METRICS = GVR("metrics.k8s.io", "v1beta1", "nodes")
POD_METRICS = GVR("metrics.k8s.io", "v1beta1", "pods")


def _used(resource: str) -> Callable[[Object, float], Any]:
    """What a node uses, or a pod's containers together."""

    def cell(obj: Object, now: float) -> str:
        usages = [obj["usage"]] if "usage" in obj else [container["usage"] for container in obj["containers"]]
        return sum((parse_quantity(usage[resource]) for usage in usages), Quantity(0)).canonical()

    return cell


_COLUMNS = (
    NAME,
    Column("cpu", _used("cpu"), format="quantity"),
    Column("memory", _used("memory"), format="quantity"),
    Column("Window", lambda obj, now: obj["window"], format="duration"),
)

RESOURCES: Sequence[Resource] = tuple(
    Resource(
        gvr,
        kind,
        Strategy(),
        namespaced=gvr == POD_METRICS,
        verbs=("get", "list"),
        columns=_COLUMNS,
        virtual=True,
    )
    for gvr, kind in ((NODE_METRICS, "NodeMetrics"), (POD_METRICS, "PodMetrics"))
)
