"""What v1 answers without storing it: Bindings, which put a pod on a node, and the ComponentStatuses of old."""

from __future__ import annotations

from kone.apimachinery.kinds import BINDINGS as GVR_BINDINGS
from kone.apimachinery.kinds import GVR
from kone.apimachinery.objects import Object
from kone.registry.resource import NAME, Column, Resource
from kone.registry.strategy import Strategy


def _health(obj: Object) -> Object:
    for condition in obj.get("conditions") or ():
        if condition.get("type") == "Healthy":
            return {**condition, "shown": "Healthy" if condition.get("status") == "True" else "Unhealthy"}
    return {"shown": "Unknown"}


BINDINGS = Resource(gvr=GVR_BINDINGS, kind="Binding", strategy=Strategy(), verbs=("create",), virtual=True)

COMPONENTSTATUSES = Resource(
    gvr=GVR("", "v1", "componentstatuses"),
    kind="ComponentStatus",
    namespaced=False,
    short_names=("cs",),
    verbs=("get", "list"),
    strategy=Strategy(),
    virtual=True,
    columns=(
        NAME,
        Column("Status", lambda obj, now: _health(obj)["shown"]),
        Column("Message", lambda obj, now: _health(obj).get("message", "")),
        Column("Error", lambda obj, now: _health(obj).get("error", "")),
    ),
)
