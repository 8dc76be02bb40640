"""NamespaceExists and NamespaceAutoProvision: what is written to a namespace that is not there, beyond creations.

NamespaceLifecycle refuses to create in a missing namespace; NamespaceExists refuses updates and deletions there, too,
and NamespaceAutoProvision, which is asked first, makes the namespace.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from kone.admission.plugin import Attributes, Caches, Plugin
from kone.apimachinery.errors import StatusError, not_found

MakeNamespace = Callable[[str], Awaitable[None]]
"""Creates the namespace of that name. Raises StatusError."""


class _OfNamespace(Plugin):
    subresources = None

    def __init__(self, caches: Caches) -> None:
        self._namespaces = caches.of("", "namespaces")

    def _is_missing(self, a: Attributes) -> bool:
        if not a.namespace or (a.kind.group, a.kind.kind) == ("", "Namespace"):
            return False
        return self._namespaces.get("", a.namespace) is None


class NamespaceExists(_OfNamespace):
    name = "NamespaceExists"
    operations = frozenset({"CREATE", "UPDATE", "DELETE"})

    async def validate(self, a: Attributes) -> None:
        if self._is_missing(a):
            raise not_found("namespaces", a.namespace)


class NamespaceAutoProvision(_OfNamespace):
    name = "NamespaceAutoProvision"
    operations = frozenset({"CREATE"})

    def __init__(self, caches: Caches, make: MakeNamespace) -> None:
        super().__init__(caches)
        self._make = make

    async def mutate(self, a: Attributes) -> None:
        if a.dry_run or not self._is_missing(a):
            return
        try:
            await self._make(a.namespace)
        except StatusError as error:
            if error.reason != "AlreadyExists":
                raise a.refuse(str(error)) from None
