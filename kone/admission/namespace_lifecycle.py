"""NamespaceLifecycle: nothing is made in a namespace that is missing or ending, and three namespaces never end."""

from __future__ import annotations

from kone.admission.plugin import Attributes, Caches, Plugin
from kone.apimachinery.errors import forbidden, not_found
from kone.apimachinery.objects import dig

IMMORTAL = frozenset({"default", "kube-system", "kube-public"})
# Who reviews access must not learn which namespaces exist.
ACCESS_REVIEWS = frozenset({("authorization.k8s.io", "localsubjectaccessreviews")})


class NamespaceLifecycle(Plugin):
    name = "NamespaceLifecycle"
    operations = frozenset({"CREATE", "DELETE"})
    subresources = None

    def __init__(self, caches: Caches) -> None:
        self._namespaces = caches.of("", "namespaces")

    async def mutate(self, a: Attributes) -> None:
        if a.group_resource == ("", "namespaces"):
            if a.operation == "DELETE" and a.name in IMMORTAL:
                raise forbidden("namespaces", a.name, "this namespace may not be deleted")
            return
        if a.operation == "DELETE" or not a.namespace or a.group_resource in ACCESS_REVIEWS:
            return
        entry = self._namespaces.get("", a.namespace)
        if entry is None:
            raise not_found("namespaces", a.namespace)
        if dig(entry.obj, "status", "phase") == "Terminating":
            error = a.refuse(f"unable to create new content in namespace {a.namespace} because it is being terminated")
            error.details["causes"] = [
                {
                    "reason": "NamespaceTerminating",
                    "message": f"namespace {a.namespace} is being terminated",
                    "field": "metadata.namespace",
                }
            ]
            raise error
