"""The client of kone's own loops in the API server's process: the verbs without HTTP, the watch cache as every
informer.

Each loop has its own identity (system:kube-scheduler, …) as upstream's have; authorization is not asked again in
here, admission and validation are. A write is in the informers before the call that made it returns.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import GVR
from kone.apimachinery.objects import Object, name_of, namespace_of
from kone.apimachinery.patch import Patch
from kone.apimachinery.users import User
from kone.apiserver import subresources
from kone.apiserver.context import DeleteOptions, RequestContext
from kone.apiserver.options import ListOptions
from kone.apiserver.ownership import manager_of_user
from kone.apiserver.reads import Selection
from kone.apiserver.verbs import Verbs
from kone.client.client import EventType, Handler, Informer, Objects, PatchKind, Propagation, Unsubscribe
from kone.registry.resource import Resource
from kone.store.store import Entry, Event

log = logging.getLogger(__name__)


class LocalClient:
    """client.Client on the verbs of this process, as `user`."""

    def __init__(self, verbs: Verbs, user: User) -> None:
        self._verbs = verbs
        self._user = user
        self._manager = manager_of_user(user.name)
        self._informers: dict[tuple[GVR, str], LocalInformer] = {}

    async def get(self, resource: GVR, name: str, namespace: str = "", *, subresource: str = "") -> Object:
        kind = self._find(resource)
        if subresource and subresource not in kind.all_subresources():
            raise _no_such_resource()
        return (await subresources.read(self._verbs, kind, subresource, name, namespace, "")).obj

    async def list(self, resource: GVR, namespace: str = "", *, labels: str = "", fields: str = "") -> Objects:
        kind = self._find(resource)
        page = await self._verbs.list(kind, ListOptions(labels=labels, fields=fields), namespace=namespace)
        return [entry.obj for entry in page.entries]

    def informer(self, resource: GVR, *, fields: str = "") -> Informer:
        found = self._informers.get((resource, fields))
        if found is None:
            found = self._informers[resource, fields] = LocalInformer(self._verbs, self._find(resource), fields)
        return found

    async def create(
        self, resource: GVR, obj: Object, *, namespace: str = "", subresource: str = "", name: str = ""
    ) -> Object:
        kind, ctx = self._find(resource), self._context()
        where = namespace or namespace_of(obj)
        if subresource or kind.virtual:
            named = name or name_of(obj)
            answer = await subresources.act(self._verbs, ctx, kind, subresource, obj, namespace=where, name=named)
        else:
            answer = await self._verbs.create(ctx, kind, obj, namespace=where)
        return answer.obj

    async def update(self, resource: GVR, obj: Object, *, subresource: str = "") -> Object:
        answer = await subresources.replace(
            self._verbs,
            self._context(),
            self._find(resource),
            subresource,
            name_of(obj),
            obj,
            namespace=namespace_of(obj),
        )
        return answer.obj

    async def patch(
        self,
        resource: GVR,
        name: str,
        patch: Any,
        *,
        namespace: str = "",
        subresource: str = "",
        kind: PatchKind = "merge",
    ) -> Object:
        answer = await subresources.amend(
            self._verbs,
            self._context(),
            self._find(resource),
            subresource,
            name,
            Patch(kind, patch),
            namespace=namespace,
        )
        return answer.obj

    async def apply(
        self, resource: GVR, name: str, fields: Object, *, namespace: str = "", subresource: str = "", manager: str
    ) -> Object:
        """Server-side apply of `fields`, taking them from whoever has them."""
        kind = self._find(resource)
        ctx = RequestContext(self._user, field_manager=manager, force=True)
        meta = {"name": name, "namespace": namespace} if namespace else {"name": name}
        config: Object = {"apiVersion": resource.api_version, "kind": kind.kind, "metadata": meta, **fields}
        answer = await subresources.apply(self._verbs, ctx, kind, subresource, name, config, namespace=namespace)
        return answer.obj

    async def delete(
        self,
        resource: GVR,
        name: str,
        *,
        namespace: str = "",
        uid: str = "",
        resource_version: str = "",
        grace_s: int | None = None,
        propagation: Propagation = "",
    ) -> None:
        options = DeleteOptions(
            grace_s=grace_s,
            uid=uid or None,
            resource_version=resource_version or None,
            propagation=propagation or None,
        )
        await self._verbs.delete(self._context(), self._find(resource), name, options, namespace=namespace)

    async def delete_collection(
        self,
        resource: GVR,
        *,
        namespace: str = "",
        labels: str = "",
        fields: str = "",
        propagation: Propagation = "",
    ) -> None:
        selected, options = ListOptions(labels=labels, fields=fields), DeleteOptions(propagation=propagation or None)
        await self._verbs.delete_collection(
            self._context(), self._find(resource), selected, options, namespace=namespace
        )

    def _context(self) -> RequestContext:
        return RequestContext(self._user, field_manager=self._manager, field_validation="Ignore")

    def _find(self, resource: GVR) -> Resource:
        found = self._verbs.registry.find(*resource)
        if found is None:
            raise _no_such_resource()
        return found


def _no_such_resource() -> StatusError:
    return StatusError(404, "NotFound", "the server could not find the requested resource")


class LocalInformer:
    """client.Informer as a view on the watch cache: nothing is copied, nothing has to be synced.

    A view cannot wait: a custom resource that only a webhook can convert is shown as it is stored. Loops know nothing
    of it but its metadata, which no conversion changes.
    """

    def __init__(self, verbs: Verbs, resource: Resource, fields: str) -> None:
        self._resource = resource
        self._cache = verbs.cache(resource)
        self._selection = Selection(resource, ListOptions(fields=fields))

    @property
    def synced(self) -> bool:
        return True

    async def wait_synced(self) -> None:
        return

    def get(self, namespace: str, name: str) -> Object | None:
        return self._selected(self._cache.get(namespace, name))

    def list(self, namespace: str = "") -> Objects:
        return self._all(self._cache.list(namespace))

    def subscribe(self, handler: Handler) -> Unsubscribe:
        for obj in self.list():
            self._tell(handler, "ADDED", obj, None)
        return self._cache.subscribe(lambda event: self._on_event(handler, event))

    def add_index(self, name: str, keys: Callable[[Object], Iterable[str]]) -> None:
        self._cache.add_index(name, keys)

    def by_index(self, name: str, key: str) -> Objects:
        return self._all(self._cache.by_index(name, key))

    def _all(self, entries: Iterable[Entry]) -> Objects:
        if self._selection.everything and self._resource.conversion is None:
            return [entry.obj for entry in entries]
        return [obj for entry in entries if (obj := self._selected(entry)) is not None]

    def _selected(self, entry: Entry | None) -> Object | None:
        if entry is None:
            return None
        obj = self._shown(entry)
        return obj if self._selection.everything or self._selection.matches(obj) else None

    def _shown(self, entry: Entry) -> Object:
        conversion = self._resource.conversion
        return entry.obj if conversion is None else (conversion.at_once(entry) or entry).obj

    def _on_event(self, handler: Handler, event: Event) -> None:
        before = self._selected(event.before)
        if event.type == "DELETED":
            if before is not None:
                self._tell(handler, "DELETED", self._shown(event.entry), before)
            return
        now = self._selected(event.entry)
        if now is not None:
            self._tell(handler, "ADDED" if before is None else "MODIFIED", now, before)
        elif before is not None:
            self._tell(handler, "DELETED", before, before)

    def _tell(self, handler: Handler, kind: EventType, obj: Object, previous: Object | None) -> None:
        try:
            handler(kind, obj, previous)
        except Exception:
            # A handler is another loop's code: its fault must not undo the write that it was told of.
            log.exception(
                "a handler of %s failed at %s of %s/%s", self._resource.kind, kind, namespace_of(obj), name_of(obj)
            )
