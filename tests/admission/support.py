"""What admission tests share: attributes of a write, and a chain of one plugin."""

from __future__ import annotations

from typing import Any

from kone.admission.plugin import Attributes, Operation, Plugin
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import GVK, GVR, PODS
from kone.apimachinery.objects import Object, name_of
from kone.apimachinery.users import User

ANN = User("ann", groups=("system:authenticated",))


def pod(name: str = "p", namespace: str = "ns", annotations: dict[str, str] | None = None, **spec: Any) -> Object:
    meta: Object = {"name": name, "namespace": namespace}
    if annotations:
        meta["annotations"] = annotations
    spec.setdefault("containers", [{"name": "c", "image": "i"}])
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}


def write(
    operation: Operation,
    obj: Object | None,
    resource: GVR = PODS,
    *,
    old: Object | None = None,
    subresource: str = "",
    namespace: str = "ns",
    name: str | None = None,
    kind: str = "",
    user: User = ANN,
) -> Attributes:
    named = name_of(obj or old or {}) if name is None else name
    gvk = GVK(resource.group, resource.version, kind or (obj or {}).get("kind", ""))
    return Attributes(operation, resource, gvk, subresource, namespace, named, obj, old, user)


async def admit(plugin: Plugin, a: Attributes) -> Attributes:
    """Both passes of one plugin, if it is concerned."""
    if plugin.handles(a):
        await plugin.mutate(a)
        await plugin.validate(a)
    return a


async def refusal(plugin: Plugin, a: Attributes) -> StatusError:
    try:
        await admit(plugin, a)
    except StatusError as error:
        return error
    raise AssertionError("the write was not refused")
