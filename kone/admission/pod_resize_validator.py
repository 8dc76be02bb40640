"""PodResizeValidator: a pod in place never grows beyond what its node can ever give."""

from __future__ import annotations

from kone.admission.plugin import Attributes, Caches, Plugin
from kone.apimachinery.errors import StatusError, go_quote
from kone.apimachinery.objects import Object, dig, generation_of, labels_of
from kone.apimachinery.pod_resources import amounts, pod_requests

OS_LABEL = "kubernetes.io/os"


class PodResizeValidator(Plugin):
    name = "PodResizeValidator"
    operations = frozenset({"UPDATE"})
    resources = frozenset({("", "pods")})
    subresources = frozenset({"resize"})

    def __init__(self, caches: Caches) -> None:
        self._nodes = caches.of("", "nodes")

    async def validate(self, a: Attributes) -> None:
        name = dig(a.object, "spec", "nodeName")
        if not name or a.old is None or generation_of(a.old) == generation_of(a.object):
            return
        entry = self._nodes.get("", name)
        if entry is None:
            raise a.refuse(f"node {go_quote(name)} not found")
        system = labels_of(entry.obj).get(OS_LABEL, "linux")
        if system != "linux":
            why = f"pod resize is only supported on linux nodes, node {go_quote(name)} is {go_quote(system)}"
            raise _refuse(a, why, "UnsupportedPlatform")
        if why := too_much(a.object, entry.obj):
            raise _refuse(a, why, "NodeCapacity")


def too_much(pod: Object, node: Object) -> str:
    """Which requests are more than all that the node has to give, "" where none is. cpu in thousandths."""
    allocatable, requested = amounts(dig(node, "status", "allocatable")), pod_requests(pod)
    found = [
        f"{resource}, requested: {requested[resource]}, allocatable: {allocatable.get(resource, 0)}"
        for resource in ("cpu", "memory")
        if requested.get(resource, 0) > allocatable.get(resource, 0)
    ]
    return f"node didn't have enough allocatable resources: {'; '.join(found)}" if found else ""


def _refuse(a: Attributes, why: str, cause: str) -> StatusError:
    error = a.refuse(why)
    error.details["causes"] = [{"reason": cause}]
    return error
