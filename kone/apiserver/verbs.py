"""The one write path: create, update, patch and delete in the order that holds for kubectl, controllers and kubelet
alike.

A write is decoded, defaulted, mutated (admission), prepared, validated (metadata, then the kind's own rules), validated
(admission) and committed against the revision it was made from; when somebody else was faster it is made again. A new
rule for writes is added here once. Order and texts: k8s.io/apiserver, registry/rest and registry/generic.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from kone.admission.chain import Chain
from kone.admission.plugin import Attributes, Authorizer
from kone.aio.clock import Clock
from kone.apimachinery import patch as patching
from kone.apimachinery import schema
from kone.apimachinery.access import AccessRequest, access_denied
from kone.apimachinery.errors import (
    MODIFIED,
    StatusError,
    already_exists,
    conflict,
    go_quote,
    invalid,
    invalid_value,
    not_found,
)
from kone.apimachinery.json_text import in_order
from kone.apimachinery.kinds import GVK, parse_api_version
from kone.apimachinery.names import generate_name
from kone.apimachinery.objects import Object, deep_copy, metadata
from kone.apimachinery.patch import Patch
from kone.apimachinery.timestamps import format_time
from kone.apiserver.companions import Companions
from kone.apiserver.context import Answer, DeleteOptions, RequestContext
from kone.apiserver.deletion import RETURNED, Deletion, check_preconditions, ends_deletion, plan_deletion
from kone.apiserver.identity import (
    check_size,
    check_uid,
    check_version,
    drop_same_owners,
    match_name,
    match_namespace,
    new_uid,
    ordered,
    wipe,
)
from kone.apiserver.lanes import Lanes, Planned, State
from kone.apiserver.options import ListOptions
from kone.apiserver.ownership import Ownership, check_config, keep_times
from kone.apiserver.reads import Reads
from kone.cache.watch_cache import Caches
from kone.registry import generic
from kone.registry.allocators import Allocators
from kone.registry.resource import Decode, Registry, Resource
from kone.registry.strategy import Strategy
from kone.store.store import Entry, Event, KeyExists, KeyMissing, RevisionConflict, Store, Write

NAME_ATTEMPTS: Final = 8  # how often a generated name that is taken is replaced by another
CONFLICT_ATTEMPTS: Final = 100  # how often a write is made again because another was faster; upstream has no limit
DELETED_TOGETHER: Final = 16  # objects of a collection
RV_ON_CREATE: Final = "resourceVersion should not be set on objects to be created"
NAME_ALPHABET: Final = "bcdfghjklmnpqrstvwxz2456789"

Make = Callable[[Object | None], Awaitable[Object]]
"""Gives the wanted object, a private copy, from the live one (None where there is none)."""

Action = Callable[["Verbs", RequestContext, Resource, str, str, Object], Awaitable[Answer]]
"""A POST that creates no object: (verbs, context, resource, namespace, name, body) -> answer."""

Actions = dict[tuple[str, str, str], Action]
"""By (group, resource, subresource); subresources.actions makes them."""


@dataclass(frozen=True, slots=True)
class _Target:
    """What an update is of, and by whose rules."""

    resource: Resource
    strategy: Strategy
    subresource: str
    namespace: str
    name: str
    applied: bool = False
    """Whether the object made comes with its managedFields: an apply's does."""


class Verbs(Reads):
    """Every verb on every stored resource. All raise StatusError as the API answers it; objects given are private
    copies that the verb may change, objects answered are read-only."""

    def __init__(
        self,
        *,
        registry: Registry,
        store: Store,
        caches: Caches,
        admission: Chain,
        authorizer: Authorizer,
        allocators: Allocators,
        clock: Clock,
        actions: Actions | None = None,
    ) -> None:
        super().__init__(store=store, caches=caches, clock=clock)
        self.registry = registry
        self.admission = admission
        self.authorizer = authorizer
        self.actions: Actions = actions or {}
        """What POSTs do that create no object (subresources.actions)."""
        self._allocators = allocators
        self._lanes = Lanes(store)
        self._ownership = Ownership(registry)
        self._companions = Companions(registry, caches, self._ownership, clock)

    # -- create ----------------------------------------------------------------------------------------------------

    async def create(self, ctx: RequestContext, resource: Resource, obj: Object, *, namespace: str = "") -> Answer:
        """Store a new object; 409 AlreadyExists, 422 Invalid. A generated name that is taken is made anew, 8 times."""
        obj = self.decoded(ctx, resource, obj)
        meta = obj["metadata"]
        given = meta.get("managedFields")
        wipe(meta)
        match_namespace(resource, meta, namespace)
        return await self._create(ctx, resource, resource.strategy, obj, namespace, given=given)

    async def _create(
        self,
        ctx: RequestContext,
        resource: Resource,
        strategy: Strategy,
        obj: Object,
        namespace: str,
        *,
        given: Any = None,
        applied: bool = False,
    ) -> Answer:
        """`given` are the managedFields that the client sent; `applied`: the object comes with its own."""
        drop_same_owners(ctx, obj)
        strategy.default(obj)
        if not applied:
            await self._ownership.update(ctx, resource, "", None, obj, given, format_time(self.clock.now()))
        name = obj["metadata"].get("name", "")
        attributes = self.attributes(ctx, resource, "CREATE", "", namespace, name, obj, None)
        await self.admission.mutate(attributes)
        obj = attributes.obj or obj
        drop_same_owners(ctx, obj, after_admission=True)
        meta = obj["metadata"]
        generate = bool(meta.get("generateName")) and not meta.get("name")
        copied = generate or strategy.allocates
        for attempt in range(NAME_ATTEMPTS):
            try:
                return await self._create_once(ctx, resource, strategy, deep_copy(obj) if copied else obj, namespace)
            except StatusError as error:
                if not generate or error.reason != "AlreadyExists" or attempt == NAME_ATTEMPTS - 1:
                    raise
            except KeyExists:
                continue  # somebody was given the same just now: it is not free any more
        raise conflict(resource.gvr.group_resource, meta.get("name", ""), MODIFIED)

    async def _create_once(
        self, ctx: RequestContext, resource: Resource, strategy: Strategy, obj: Object, namespace: str
    ) -> Answer:
        meta = obj["metadata"]
        generic.fill_system_fields(obj, uid=new_uid(), creation_timestamp=format_time(self.clock.now()))
        if meta.get("generateName") and not meta.get("name"):
            meta["name"] = generate_name(meta["generateName"], "".join(random.choices(NAME_ALPHABET, k=5)))
        undo = strategy.begin(obj, None, self._allocators)
        try:
            for text in strategy.prepare(obj, None, user=ctx.user) or ():
                ctx.warn(text)
            self._validate(ctx, resource, strategy, obj, None)
            attributes = self.attributes(ctx, resource, "CREATE", "", namespace, meta["name"], obj, None)
            await self.admission.validate(attributes)
            version = meta.pop("resourceVersion", "")
            if version.isdigit() and int(version):
                raise StatusError(500, "", RV_ON_CREATE)
            check_size(ctx.body_bytes, obj)
            answer = await self._commit_new(ctx, resource, obj, await self._companions.writes(strategy, obj, None))
        except BaseException:
            if undo is not None:
                undo()
            raise
        if ctx.dry_run and undo is not None:
            undo()
        return answer

    async def _commit_new(
        self, ctx: RequestContext, resource: Resource, obj: Object, along: tuple[Write, ...]
    ) -> Answer:
        """Raises KeyExists where it is not the object that is there, but what goes along with it."""
        meta = obj["metadata"]
        name, namespace = meta["name"], meta.get("namespace", "")
        live = self.cache(resource).get(namespace, name)
        if live is None and ctx.dry_run:
            return Answer(obj, code=201)
        if live is None:
            try:
                return await self._commit(resource, namespace, name, obj, 0, code=201, along=along)
            except KeyExists as found:
                if found.key != self.key(resource, namespace, name):
                    raise
                live = self.cache(resource).get(namespace, name)
        error = already_exists(resource.gvr.group_resource, name)
        if live is not None and metadata(live.obj).get("deletionTimestamp"):
            error = StatusError(
                error.code, error.reason, f"object is being deleted: {error.message}", details=error.details
            )
        raise error

    # -- update and patch ------------------------------------------------------------------------------------------

    async def update(
        self,
        ctx: RequestContext,
        resource: Resource,
        name: str,
        obj: Object,
        *,
        namespace: str = "",
        subresource: str = "",
    ) -> Answer:
        """Replace the object; 409 Conflict when its resourceVersion is set and not the newest. 201 where the kind may
        be created by an update and was."""
        obj = self.decoded(ctx, resource, obj)
        self.check_names(resource, obj, name, namespace)
        uid = obj["metadata"].get("uid", "")

        async def make(_: Object | None) -> Object:
            copy: Object = deep_copy(obj)
            return copy

        return await self.write(ctx, resource, name, make, namespace=namespace, subresource=subresource, uid=uid)

    async def patch(
        self,
        ctx: RequestContext,
        resource: Resource,
        name: str,
        patch: Patch,
        *,
        namespace: str = "",
        subresource: str = "",
    ) -> Answer:
        """Apply a patch to the live object and store the outcome as an update does."""

        async def make(live: Object | None) -> Object:
            if live is None:
                raise not_found(resource.gvr.group_resource, name)
            wanted = self.patched(ctx, resource.gvk, live, patch, resource.custom)
            self.check_names(resource, wanted, name, namespace)
            return wanted

        return await self.write(ctx, resource, name, make, namespace=namespace, subresource=subresource)

    async def apply(
        self,
        ctx: RequestContext,
        resource: Resource,
        name: str,
        config: Object,
        *,
        namespace: str = "",
        subresource: str = "",
    ) -> Answer:
        """Server-side apply: make the object say what `config` says, as `ctx.field_manager`. Creates it (201) where
        there is none; 409 for fields that others own with other values, unless `ctx.force`."""
        check_config(config, resource.gvk)

        async def make(live: Object | None) -> Object:
            time = format_time(self.clock.now())
            made = await self._ownership.apply(ctx, resource, subresource, live, config, time)
            uid = metadata(made).get("uid")
            obj = self.decoded(ctx, resource, made)
            if live is None:
                if uid:
                    errors = [invalid_value("metadata.uid", uid, generic.IMMUTABLE)]
                    raise invalid(resource.gvk.group_kind, name, errors)
                obj["metadata"].pop("resourceVersion", None)
            self.check_names(resource, obj, name, namespace)
            return obj

        return await self.write(ctx, resource, name, make, namespace=namespace, subresource=subresource, applied=True)

    async def applied_scale(self, ctx: RequestContext, resource: Resource, live: Object, config: Object) -> Object:
        """`live` with what applying `config`, which says only replicas, makes of it."""
        made = await self._ownership.apply(ctx, resource, "scale", live, config, "")
        return self.decoded(ctx, resource, made)

    def patched(self, ctx: RequestContext, gvk: GVK, live: Object, patch: Patch, read: Decode | None = None) -> Object:
        """A private copy of `live` with the patch applied, decoded by the kind's schema, or by `read` for custom
        resources. Raises StatusError."""
        found = patching.apply(patch, live, gvk, read)
        if found.findings and ctx.field_validation == "Strict":
            raise found.strict_error()
        self._judge(ctx, gvk, found.findings)
        given = found.obj.get("apiVersion"), found.obj.get("kind")
        if given != (gvk.api_version, gvk.kind) and read is not None:
            raise _of_another_kind(found.obj, gvk)
        if given != (gvk.api_version, gvk.kind):
            why = f"the patch makes it {given[0]}, Kind={given[1]}"
            raise invalid("", "", [invalid_value("patch", found.shown, why)])
        return ordered(gvk, found.obj)

    async def write(
        self,
        ctx: RequestContext,
        resource: Resource,
        name: str,
        make: Make,
        *,
        namespace: str = "",
        subresource: str = "",
        uid: str = "",
        applied: bool = False,
    ) -> Answer:
        """Make the wanted object from the live one and commit it against that state, again until nobody was faster.

        This is GuaranteedUpdate. `uid` is a precondition; what is `applied` comes with its managedFields. A write
        that changes nothing gets no new revision.
        """
        strategy = resource.strategy if subresource == "scale" else self.strategy(resource, subresource)
        cache, key = self.cache(resource), self.key(resource, namespace, name)
        target = _Target(resource, strategy, subresource, namespace, name, applied)

        async def plan(state: State) -> Planned:
            return await self._plan_update(ctx, target, state, make, uid)

        for _ in range(CONFLICT_ATTEMPTS):
            live = cache.get(namespace, name)
            if live is None:
                if subresource or not (applied or strategy.create_on_update):
                    raise not_found(resource.gvr.group_resource, name)
                return await self._create_by_update(ctx, resource, await make(None), namespace, uid, applied)
            try:
                if ctx.dry_run:
                    planned = await plan(State(live.obj, live.revision, len(live.encoded), live))
                    planned.abandon()
                    return await self._spoken(resource, planned.answer(None))
                answer = await self._lanes.run(key, lambda: cache.get(namespace, name), plan)
                return await self._spoken(resource, answer)
            except (RevisionConflict, KeyMissing, KeyExists):
                continue
        raise conflict(resource.gvr.group_resource, name, MODIFIED)

    async def _create_by_update(
        self, ctx: RequestContext, resource: Resource, obj: Object, namespace: str, uid: str, applied: bool
    ) -> Answer:
        meta = obj["metadata"]
        if uid:
            check_uid(resource, {}, uid, namespace, meta["name"])
        gvr = resource.gvr
        request = AccessRequest("create", gvr.group, gvr.version, gvr.resource, namespace=namespace, name=meta["name"])
        allowed, reason = self.authorizer.allowed(ctx.user, request)
        if not allowed:
            raise access_denied(ctx.user, request, reason)
        given = meta.get("managedFields")
        wipe(meta)
        if applied and given:
            meta["managedFields"] = given
        return await self._create(ctx, resource, resource.strategy, obj, namespace, given=given, applied=applied)

    async def _plan_update(self, ctx: RequestContext, target: _Target, state: State, make: Make, uid: str) -> Planned:
        """Everything that an update is but its commit. Raises StatusError."""
        resource, strategy, namespace, name = target.resource, target.strategy, target.namespace, target.name
        old = await self._old(resource, state)
        if uid:
            check_uid(resource, old, uid, namespace, name)
        obj = await make(old)
        strategy.default(obj)
        if not target.applied:
            given = obj["metadata"].pop("managedFields", None)
            # What goes through a Scale comes back from it without its time.
            time = "" if target.subresource == "scale" else format_time(self.clock.now())
            await self._ownership.update(ctx, resource, target.subresource, old, obj, given, time)
        attributes = self.attributes(ctx, resource, "UPDATE", target.subresource, namespace, name, obj, old)
        await self.admission.mutate(attributes)
        obj = attributes.obj or obj
        drop_same_owners(ctx, obj, after_admission=True)
        meta = obj["metadata"]
        check_version(resource, strategy, meta, state.version, name)
        generic.keep_generation(obj, old)
        undo = strategy.begin(obj, old, self._allocators)
        try:
            strategy.prepare(obj, old, user=ctx.user)
            generic.keep_system_fields(obj, old)
            meta["resourceVersion"] = str(state.version)
            keep_times(obj, old)
            self._validate(ctx, resource, strategy, obj, old)
            attributes = self.attributes(ctx, resource, "UPDATE", target.subresource, namespace, name, obj, old)
            await self.admission.validate(attributes)
            check_size(ctx.body_bytes + state.encoded_bytes, obj)
        except BaseException:
            if undo is not None:
                undo()
            raise
        key = self.key(resource, namespace, name)
        if ends_deletion(resource.strategy, obj, old):
            along = await self._companions.writes(resource.strategy, None, old)
            return Planned(Write(key, None, state.version), lambda _: Answer(obj), undo, along)
        stored = await self._stored(resource, obj)
        if stored == state.obj:
            return Planned(None, lambda event: _unchanged(state, event), undo)
        if ctx.dry_run:
            return Planned(None, lambda _: Answer(obj), undo)
        write = Write(key, stored, state.version, volatile=resource.strategy.is_volatile(obj))
        along = await self._companions.writes(strategy, obj, old)
        return Planned(write, lambda event: _written(resource, event), undo, along)

    async def _old(self, resource: Resource, state: State) -> Object:
        """What a write is made from, in the version of the resource."""
        if state.entry is not None:
            return (await self.shown(resource, state.entry)).obj
        return state.obj if resource.conversion is None else await resource.conversion.from_storage(state.obj)

    async def _spoken(self, resource: Resource, answer: Answer) -> Answer:
        """An answer that may hold what is stored, in the version of the resource."""
        return answer if answer.stored is None else await self.answer(resource, answer.stored, answer.code)

    async def overwrite(
        self,
        ctx: RequestContext,
        resource: Resource,
        name: str,
        change: Callable[[Object], Object],
        *,
        namespace: str = "",
    ) -> Answer:
        """Change the live object without its kind's rules or admission: for what the server itself writes through an
        action (a binding's node, a budget's count). `change` gives a new object, or raises."""
        for _ in range(CONFLICT_ATTEMPTS):
            live = self.cache(resource).get(namespace, name)
            if live is None:
                raise not_found(resource.gvr.group_resource, name)
            changed = change((await self.shown(resource, live)).obj)
            if ctx.dry_run:
                return Answer(changed)
            try:
                return await self._commit(resource, namespace, name, changed, live.revision)
            except (RevisionConflict, KeyMissing):
                continue
        raise conflict(resource.gvr.group_resource, name, MODIFIED)

    # -- delete ----------------------------------------------------------------------------------------------------

    async def delete(
        self,
        ctx: RequestContext,
        resource: Resource,
        name: str,
        options: DeleteOptions = DeleteOptions(),  # noqa: B008 (frozen)
        *,
        namespace: str = "",
        of_collection: bool = False,
    ) -> Answer:
        """Delete the object, or mark it where finalizers or a grace period hold it. Answers the object in the second
        case (and for kinds that always do), else a Status with its uid. Admission is not told the name of an object
        that goes with its collection, as upstream."""
        for _ in range(CONFLICT_ATTEMPTS):
            live = self.cache(resource).get(namespace, name)
            if live is None:
                raise not_found(resource.gvr.group_resource, name)
            old = (await self.shown(resource, live)).obj
            check_preconditions(resource.gvk, old, options)
            shown = "" if of_collection else name
            attributes = self.attributes(ctx, resource, "DELETE", "", namespace, shown, None, old)
            attributes.options = options.as_object(ctx.dry_run)
            await self.admission.mutate(attributes)
            await self.admission.validate(attributes)
            _warn_of_orphans(ctx, resource, options)
            plan = plan_deletion(resource.strategy, old, options, self.clock.now())
            try:
                return await self._perform(ctx, resource, namespace, name, live, plan, options)
            except (RevisionConflict, KeyMissing):
                continue
        raise conflict(resource.gvr.group_resource, name, MODIFIED)

    async def _perform(
        self,
        ctx: RequestContext,
        resource: Resource,
        namespace: str,
        name: str,
        live: Entry,
        plan: Deletion,
        options: DeleteOptions,
    ) -> Answer:
        # A caller who asked to wait for dependents (orphanDependents=false) is told that the object is still there.
        waiting_code = 202 if options.orphan_dependents is False else 200
        answer = await self.answer(resource, live)
        if ctx.dry_run:
            answer = Answer(plan.obj) if plan.changed else answer
        else:
            # Watchers see both, the object marked and the object gone, but it is one commit.
            key, writes = self.key(resource, namespace, name), []
            if plan.changed:
                volatile = resource.strategy.is_volatile(plan.obj)
                writes.append(Write(key, await self._stored(resource, plan.obj), live.revision, volatile))
            if plan.remove:
                writes.append(Write(key, None, None if writes else live.revision))
                writes += await self._companions.writes(resource.strategy, None, live.obj)
            if writes:
                events = await self.store.commit(*writes)
                answer = await self.answer(resource, events[0].entry)
        if not plan.remove:
            return answer.with_code(waiting_code)
        if (resource.gvr.group, resource.gvr.resource) in RETURNED:
            return answer
        return Answer(_deleted_status(resource, answer.obj))

    async def delete_collection(
        self,
        ctx: RequestContext,
        resource: Resource,
        list_options: ListOptions,
        options: DeleteOptions,
        *,
        namespace: str = "",
    ) -> Any:
        """Delete every object that the list options select, some at a time so that they share a commit; the answer is
        the list as it was before."""
        page = await self.list(resource, list_options, namespace=namespace)
        _warn_of_orphans(ctx, resource, options)

        async def remove(entry: Entry) -> None:
            meta = metadata(entry.obj)
            try:
                space = meta.get("namespace", "")
                await self.delete(ctx, resource, meta["name"], options, namespace=space, of_collection=True)
            except StatusError as error:
                if error.reason != "NotFound":
                    raise

        for first in range(0, len(page.entries), DELETED_TOGETHER):
            batch = page.entries[first : first + DELETED_TOGETHER]
            for answer in await asyncio.gather(*map(remove, batch), return_exceptions=True):
                if isinstance(answer, BaseException):
                    raise answer
        return page

    # -- shared ----------------------------------------------------------------------------------------------------

    def strategy(self, resource: Resource, subresource: str) -> Strategy:
        """The rules of the resource, or of its part that a subresource writes. 404 where there is none."""
        if not subresource:
            return resource.strategy
        if subresource == "status" and resource.status is not None:
            return resource.status
        part = resource.subresources.get(subresource)
        if part is None or part.strategy is None:
            raise StatusError(404, "NotFound", "the server could not find the requested resource")
        return part.strategy

    async def _stored(self, resource: Resource, obj: Object) -> Object:
        return obj if resource.conversion is None else await resource.conversion.to_storage(obj)

    def decoded(self, ctx: RequestContext, resource: Resource, obj: Object) -> Object:
        """As `decoded_as`, of a resource's own kind, custom ones included."""
        if resource.custom is None:
            return self.decoded_as(ctx, resource.gvk, obj)
        known, unknown = resource.custom(obj)
        self._judge(ctx, resource.gvk, [*ctx.strict_errors, *(f"unknown field {go_quote(path)}" for path in unknown)])
        return ordered(resource.gvk, known)

    def decoded_as(self, ctx: RequestContext, gvk: GVK, obj: Object) -> Object:
        """The object as its kind's schema reads it; nothing is shared with `obj`. Unknown fields are dropped, with a
        warning or an error as the request asked. Raises 400 for values of a wrong type."""
        known, unknown = schema.strict_decode(obj, gvk)
        findings = [*ctx.strict_errors, *unknown]
        self._judge(ctx, gvk, in_order(obj, findings) if ctx.strict_errors and unknown else findings)
        return ordered(gvk, known)

    def _judge(self, ctx: RequestContext, gvk: GVK, findings: list[str]) -> None:
        """What becomes of what strict decoding finds."""
        if not findings or ctx.field_validation == "Ignore":
            return
        if ctx.field_validation == "Strict":
            raise schema.strict_error(gvk, findings)
        for text in findings:
            for line in text.removeprefix("yaml: unmarshal errors:\n").split("\n"):
                ctx.warn(line.strip())

    def check_names(self, resource: Resource, obj: Object, name: str, namespace: str) -> None:
        """Raises 400 where the object's name or namespace is not the URL's."""
        match_name(obj, name)
        match_namespace(resource, obj["metadata"], namespace)

    def check_namespace(self, resource: Resource, obj: Object, namespace: str) -> None:
        """As `check_names`, of what has no name. Fills in the namespace that is left out."""
        match_namespace(resource, obj["metadata"], namespace)

    def _validate(
        self, ctx: RequestContext, resource: Resource, strategy: Strategy, obj: Object, old: Object | None
    ) -> None:
        if old is None:
            errors = generic.validate_create(obj, strategy, namespaced=resource.namespaced)
        else:
            errors = generic.validate_update(obj, old, strategy, namespaced=resource.namespaced)
        if errors:
            # Events of events.k8s.io are told of as what they are stored as.
            kind = GVK(resource.storage_key[0], "", resource.kind).group_kind
            raise invalid(kind, obj["metadata"].get("name", ""), errors)
        for text in strategy.warnings(obj, old):
            ctx.warn(text)

    def attributes(
        self,
        ctx: RequestContext,
        resource: Resource,
        operation: Literal["CREATE", "UPDATE", "DELETE", "CONNECT"],
        subresource: str,
        namespace: str,
        name: str,
        obj: Object | None,
        old: Object | None,
    ) -> Attributes:
        return Attributes(
            operation=operation,
            resource=resource.gvr,
            kind=resource.gvk,
            subresource=subresource,
            namespace=namespace,
            name=name,
            obj=obj,
            old=old,
            user=ctx.user,
            dry_run=ctx.dry_run,
            options=ctx.write_options(operation),
            warnings=ctx.warnings,
            annotations=ctx.annotations,
        )

    async def _commit(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        obj: Object,
        expected: int,
        *,
        code: int = 200,
        along: tuple[Write, ...] = (),
    ) -> Answer:
        write = Write(
            self.key(resource, namespace, name),
            await self._stored(resource, obj),
            expected,
            volatile=resource.strategy.is_volatile(obj),
        )
        *_, event = await self.store.commit(*along, write)
        return await self._spoken(resource, _written(resource, event).with_code(code))


def _unchanged(state: State, event: Event | None) -> Answer:
    entry = event.entry if event is not None else state.entry
    assert entry is not None, "what is not committed yet is committed by an event"
    return Answer(stored=entry)


def _written(resource: Resource, event: Event | None) -> Answer:
    assert event is not None, "a write has an event"
    if resource.conversion is not None:
        resource.conversion.remember(event.entry)
    return Answer(stored=event.entry)


def _of_another_kind(obj: Object, gvk: GVK) -> StatusError:
    """422 for a patch that makes a custom resource another kind, named by what it would be."""
    api_version, kind = str(obj.get("apiVersion", "")), str(obj.get("kind", ""))
    errors = []
    if kind != gvk.kind:
        errors.append(invalid_value("kind", kind, f"must be {gvk.kind}"))
    if api_version != gvk.api_version:
        errors.append(invalid_value("apiVersion", api_version, f"must be {gvk.api_version}"))
    group, _ = parse_api_version(api_version)
    return invalid(GVK(group, "", kind).group_kind, obj["metadata"].get("name", ""), errors)


def _warn_of_orphans(ctx: RequestContext, resource: Resource, options: DeleteOptions) -> None:
    warning = resource.strategy.orphan_warning
    if warning and options.propagation is None and options.orphan_dependents is None:
        ctx.warn(warning)


def _deleted_status(resource: Resource, obj: Object) -> Object:
    gvr = resource.gvr
    details = {"name": metadata(obj)["name"], "group": gvr.group, "kind": gvr.resource, "uid": metadata(obj)["uid"]}
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": {k: v for k, v in details.items() if v},
    }
