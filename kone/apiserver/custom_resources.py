"""Custom resources come and go with their definitions: names accepted, resources served, objects deleted at the end.

It is part of the API server, not of the controllers: the bare API serves custom resources too. What is established is
served from the very event that says so, and again at once after a restart.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from kone.aio.clock import Clock
from kone.aio.tasks import TaskGroup
from kone.aio.workqueue import WorkQueue
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import CUSTOMRESOURCEDEFINITIONS, GVR
from kone.apimachinery.objects import Object, deep_copy, dig, is_deleting, metadata, name_of, other_finalizers
from kone.apimachinery.timestamps import format_time
from kone.apimachinery.users import User
from kone.apiserver.context import RequestContext
from kone.apiserver.conversion_webhook import Caller, ConversionWebhook
from kone.apiserver.verbs import Verbs
from kone.cache.watch_cache import Event, WatchCache
from kone.registry import custom_resources, definition_names
from kone.registry.custom_conversion import Ask
from kone.registry.definition_names import CLEANUP_FINALIZER
from kone.registry.resource import Resource

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 0.5  # while objects with finalizers hold their definition


class CustomResources:
    """Serves what established definitions define. `user` is whom its own writes are from; `webhooks` asks those that
    convert."""

    def __init__(self, verbs: Verbs, clock: Clock, user: User, webhooks: Caller) -> None:
        self._verbs = verbs
        self._webhooks = webhooks
        self._clock = clock
        self._user = user
        found = verbs.registry.get(CUSTOMRESOURCEDEFINITIONS)
        assert found is not None, "definitions are built in"
        self._definitions: Resource = found
        self._cache: WatchCache = verbs.caches.of(CUSTOMRESOURCEDEFINITIONS.group, CUSTOMRESOURCEDEFINITIONS.resource)
        self._served: dict[str, list[GVR]] = {}
        self._queue: WorkQueue[str] = WorkQueue(clock)
        self._tasks = TaskGroup("custom-resources")
        self._unsubscribe: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Serve what is established, and follow what changes."""
        self._unsubscribe = self._cache.subscribe(self._on_event)
        for entry in self._cache.list():
            self._serve(entry.obj)
            self._queue.add(name_of(entry.obj))
        self._tasks.guard(self._work, name="custom-resources")

    async def stop(self) -> None:
        self._unsubscribe()
        self._queue.close()
        await self._tasks.cancel()

    def _on_event(self, event: Event) -> None:
        definition = event.obj
        if event.type == "DELETED":
            self._withdraw(name_of(definition))
        else:
            self._serve(definition)
        self._queue.add(name_of(definition))
        # Names that it had, others of its group may have now.
        group = dig(definition, "spec", "group")
        for other in self._of_group(group):
            conditions = dig(other, "status", "conditions") or ()
            if not definition_names.is_true(conditions, "NamesAccepted"):
                self._queue.add(name_of(other))

    def _of_group(self, group: str) -> Iterable[Object]:
        return (entry.obj for entry in self._cache.list() if dig(entry.obj, "spec", "group") == group)

    # -- serving ---------------------------------------------------------------------------------------------------

    def _serve(self, definition: Object) -> None:
        """Make the registry hold what the definition defines, and nothing of what it defined before."""
        name, registry = name_of(definition), self._verbs.registry
        wanted: list[Resource] = []
        if definition_names.is_true(dig(definition, "status", "conditions") or (), "Established"):
            try:
                wanted = custom_resources.resources(definition, self._converter(definition))
            except (KeyError, TypeError, ValueError):
                log.exception("definition %s cannot be served", name)
        gone = set(self._served.get(name, ())) - {resource.gvr for resource in wanted}
        for gvr in gone:
            registry.remove(gvr)
        kept = []
        for resource in wanted:
            present = registry.get(resource.gvr)
            if present is None or present.custom is not None:  # what is built in stays
                registry.add(resource)
                kept.append(resource.gvr)
        self._served[name] = kept

    def _converter(self, definition: Object) -> Ask | None:
        """Who converts between the definition's versions; None where they differ by name alone."""
        conversion = definition["spec"].get("conversion") or {}
        if conversion.get("strategy") != "Webhook":
            return None
        return ConversionWebhook(self._webhooks, conversion["webhook"]).ask

    def _withdraw(self, name: str) -> None:
        for gvr in self._served.pop(name, ()):
            self._verbs.registry.remove(gvr)

    # -- conditions and deletion -----------------------------------------------------------------------------------

    async def _work(self) -> None:
        while True:
            name = await self._queue.get()
            try:
                await self._sync(name)
            except (StatusError, OSError) as error:
                log.warning("definition %s: %s", name, error)
                self._queue.add_backing_off(name)
            else:
                self._queue.forget(name)
            finally:
                self._queue.done(name)

    async def _sync(self, name: str) -> None:
        entry = self._cache.get("", name)
        if entry is None:
            return
        definition = entry.obj
        if is_deleting(definition):
            if CLEANUP_FINALIZER in (metadata(definition).get("finalizers") or ()):
                await self._delete_objects(definition)
            return
        now = format_time(self._clock.now())
        others = list(self._of_group(dig(definition, "spec", "group")))
        status = definition_names.accepted_status(definition, others, now)
        if status != definition.get("status"):
            await self._write_status(name, status)

    async def _write_status(self, name: str, status: Object) -> None:
        def change(live: Object) -> Object:
            return {**live, "status": {**(live.get("status") or {}), **status}}

        await self._verbs.overwrite(self._context(), self._definitions, name, change)

    def _context(self) -> RequestContext:
        return RequestContext(self._user)

    async def _delete_objects(self, definition: Object) -> None:
        """Every object of the definition, then the definition."""
        name = name_of(definition)
        names = dig(definition, "status", "acceptedNames", default={})
        cache = self._verbs.caches.of(definition["spec"]["group"], names.get("plural", ""))
        if len(cache):
            resource = custom_resources.stored_resource(definition)
            now = format_time(self._clock.now())
            conditions = definition_names.terminating(
                dig(definition, "status", "conditions") or (),
                "InstanceDeletionInProgress",
                "CustomResource deletion is in progress",
                now,
            )
            if conditions != dig(definition, "status", "conditions"):
                await self._write_status(name, {"conditions": conditions})
            for entry in cache.list():
                meta = metadata(entry.obj)
                if meta.get("deletionTimestamp"):
                    continue
                try:
                    await self._verbs.delete(
                        self._context(), resource, meta["name"], namespace=meta.get("namespace", "")
                    )
                except StatusError as error:
                    if error.reason != "NotFound":
                        raise
            if len(cache):
                self._queue.add_after(name, LOOK_AGAIN_S)
                return

        async def without_finalizer(live: Object | None) -> Object:
            assert live is not None, "a definition is never made by an update"
            finalizers = other_finalizers(live, CLEANUP_FINALIZER)
            meta = {key: value for key, value in live["metadata"].items() if key != "finalizers"}
            left = {**live, "metadata": {**meta, **({"finalizers": finalizers} if finalizers else {})}}
            copy: Object = deep_copy(left)
            return copy

        await self._verbs.write(self._context(), self._definitions, name, without_finalizer)
