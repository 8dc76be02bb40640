"""OwnerReferencesPermissionEnforcement: who names an owner may delete what is owned, and hold up only what is theirs.

An owner reference makes the garbage collector delete an object, so giving one needs the right to delete the object. One
with blockOwnerDeletion holds up its owner's deletion, so it needs the right to set the owner's finalizers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kone.admission.plugin import Attributes, Authorizer, Plugin
from kone.apimachinery.access import AccessRequest
from kone.apimachinery.errors import go_quote
from kone.apimachinery.kinds import GVK, parse_api_version
from kone.apimachinery.objects import Object, dig
from kone.registry.resource import Registry

Reference = Mapping[str, Any]


class OwnerReferencesPermissionEnforcement(Plugin):
    name = "OwnerReferencesPermissionEnforcement"
    subresources = None

    def __init__(self, authorizer: Authorizer, registry: Registry) -> None:
        self._authorizer, self._registry = authorizer, registry

    def handles(self, a: Attributes) -> bool:
        # A pod's status cannot change its owners: its strategy keeps them.
        return super().handles(a) and not (a.group_resource == ("", "pods") and a.subresource == "status")

    async def validate(self, a: Attributes) -> None:
        new, old = _references(a.obj), _references(a.old)
        if new == old:
            return
        if a.operation != "CREATE":
            resource = a.resource
            deletion = AccessRequest(
                "delete", resource.group, resource.version, resource.resource, a.subresource, a.namespace, a.name
            )
            is_allowed, reason = self._authorizer.allowed(a.user, deletion)
            if not is_allowed:
                raise a.refuse(f"cannot set an ownerRef on a resource you can't delete: {reason}, <nil>")
        blocking = list(_newly_blocking(new, old))
        if not blocking or self._authorizer.allowed(a.user, _finalizers("*", "*", "*", "*"))[0]:
            return
        for reference in blocking:
            is_allowed, reason = self._authorizer.allowed(a.user, self._finalizers_of(a, reference))
            if not is_allowed:
                raise a.refuse(
                    "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers "
                    f"on: {reason}, <nil>"
                )

    def _finalizers_of(self, a: Attributes, reference: Reference) -> AccessRequest:
        """The right to set the owner's finalizers. Raises StatusError where nobody knows its kind."""
        version, kind = str(reference.get("apiVersion") or ""), str(reference.get("kind") or "")
        owner = self._registry.by_kind(GVK(*parse_api_version(version), kind))
        if owner is None:
            why = f"no matches for kind {go_quote(kind)} in version {go_quote(version)}"
            raise a.refuse(
                f"cannot set blockOwnerDeletion in this case because cannot find RESTMapping for APIVersion {version} "
                f"Kind {kind}: {why}"
            )
        gvr = owner.gvr
        namespace = a.namespace if owner.namespaced else ""
        return _finalizers(gvr.group, gvr.version, gvr.resource, str(reference.get("name") or ""), namespace)


def _finalizers(group: str, version: str, resource: str, name: str, namespace: str = "") -> AccessRequest:
    return AccessRequest("update", group, version, resource, "finalizers", namespace, name)


def _references(obj: Object | None) -> list[Reference]:
    return list(dig(obj, "metadata", "ownerReferences", default=()))


def _newly_blocking(new: list[Reference], old: list[Reference]) -> Iterator[Reference]:
    blocked = {each.get("uid") for each in old if each.get("blockOwnerDeletion")}
    for reference in new:
        if reference.get("blockOwnerDeletion") and reference.get("uid") not in blocked:
            yield reference
