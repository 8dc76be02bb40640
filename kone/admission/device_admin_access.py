"""DeviceAdminAccess: devices that others use are lent to administrators only. Upstream asks this in its storage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from kone.admission.plugin import Attributes, Caches, Plugin
from kone.apimachinery.errors import forbidden_field, invalid
from kone.apimachinery.objects import Object, dig, labels_of

GROUP: Final = "resource.k8s.io"
LABEL: Final = "resource.kubernetes.io/admin-access"
_WHY: Final = f"admin access to devices requires the `{LABEL}: true` label on the containing namespace"


class DeviceAdminAccess(Plugin):
    name = "DeviceAdminAccess"
    resources = frozenset(((GROUP, "resourceclaims"), (GROUP, "resourceclaimtemplates")))
    subresources = frozenset(("", "status"))

    def __init__(self, caches: Caches) -> None:
        self._namespaces = caches.of("", "namespaces")

    async def validate(self, a: Attributes) -> None:
        if a.subresource:
            if any(_given(a.old or {})):
                return  # it was granted; an allocation does not change
            place = next(_given(a.object), None)
        elif a.operation == "CREATE":
            place = next(_asked(a.object), None)
        else:
            return  # a claim's spec does not change
        if place is None:
            return
        namespace = self._namespaces.get("", a.namespace)
        if namespace is None or labels_of(namespace.obj).get(LABEL) != "true":
            raise invalid(a.kind.group_kind, a.name, [forbidden_field(place, _WHY)])


def _asked(obj: Object) -> Iterator[str]:
    """Where a claim, or the claims of a template, ask for it."""
    spec = dig(obj, "spec", "spec") if obj.get("kind") == "ResourceClaimTemplate" else obj.get("spec")
    for i, request in enumerate(dig(spec, "devices", "requests", default=())):
        if dig(request, "exactly", "adminAccess"):
            yield f"spec.devices.requests[{i}].adminAccess"


def _given(obj: Object) -> Iterator[str]:
    for i, result in enumerate(dig(obj, "status", "allocation", "devices", "results", default=())):
        if result.get("adminAccess"):
            yield f"status.allocation.devices.results[{i}].adminAccess"
