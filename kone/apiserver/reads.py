"""get, list and watch: answered from the watch caches, at the revisions that Kubernetes' resourceVersion rules ask for.

A list at the newest state costs no SQL and no encoding: its entries carry their JSON. Older states (continue tokens,
resourceVersionMatch=Exact) come from the store's history. Source of the rules: "Resource versions" in the API concepts.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import orjson

from kone.aio.clock import Clock
from kone.apimachinery.errors import Status, StatusError, bad_request, expired, go_quote, not_found
from kone.apimachinery.kinds import GVR
from kone.apimachinery.objects import Object, labels_of, metadata, replace_in
from kone.apimachinery.selectors import FieldSelector, LabelSelector, parse_field_selector, parse_label_selector
from kone.apiserver.context import Answer
from kone.apiserver.options import NO_OPTIONS, ListOptions, decode_continue, encode_continue, parse_uint
from kone.cache.watch_cache import Caches, WatchCache, Watcher
from kone.registry import versions
from kone.registry.resource import Resource
from kone.store.store import Compacted, Entry, Event, FutureRevision, Store, key_for, prefix_for

EXPIRED_CONTINUE = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list without "
    "the continue parameter, or use the continue token in this response to retrieve the remainder of the results. "
    "Continuing with the provided token results in an inconsistent list - objects that were created, modified, or "
    "deleted between the time the first chunk was returned and now may show up in the list."
)
EXPIRED_LIST = "The resourceVersion for the provided list is too old."


@dataclass(frozen=True, slots=True)
class ListPage:
    """A list's answer: `entries`, in the version asked for, at `revision`; `continue_` is "" on the last page;
    `remaining` counts the items after this page, None where a selector hides the number."""

    entries: list[Entry]
    revision: int
    continue_: str = ""
    remaining: int | None = None


class ContinueExpired(StatusError):
    """410 for a continue token that history no longer covers; it offers a token that goes on inconsistently."""

    def __init__(self, token: str) -> None:
        super().__init__(410, "Expired", EXPIRED_CONTINUE)
        self._token = token

    @property
    def status(self) -> Status:
        return {**super().status, "metadata": {"continue": self._token}}


def too_large_version(version: int, current: int) -> StatusError:
    """504 for a revision that has not come yet; clients try again after a second."""
    details = {
        "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
        "retryAfterSeconds": 1,
    }
    return StatusError(504, "Timeout", f"Too large resource version: {version}, current: {current}", details=details)


class Computed(Protocol):
    """Who makes the objects of a resource of which nothing is stored, when they are asked for."""

    async def get(self, gvr: GVR, name: str, namespace: str) -> Object:
        """Raises StatusError."""

    async def list(self, gvr: GVR, namespace: str) -> list[Object]:
        """In the order of their names; of all namespaces where none is given."""


class Selection:
    """What a list or watch lets through: labels and fields, already parsed. Matches objects in the requested
    version."""

    def __init__(self, resource: Resource, options: ListOptions) -> None:
        self._strategy = resource.strategy
        self.labels: LabelSelector | None = None
        self.fields: FieldSelector | None = None
        self.name = ""
        self.namespace = ""
        if options.labels:
            try:
                selector = parse_label_selector(options.labels)
            except ValueError as error:
                raise bad_request(str(error)) from error
            self.labels = None if selector.empty else selector
        if options.fields:
            self._take_fields(resource, options.fields)

    def _take_fields(self, resource: Resource, text: str) -> None:
        try:
            selector = parse_field_selector(text)
        except ValueError as error:
            raise bad_request(str(error)) from error
        known = resource.strategy.selectable_fields({})
        for field, operator, value in selector.requirements:
            if field not in ("metadata.name", "metadata.namespace") and field not in known:
                raise bad_request(resource.strategy.unknown_field_label(field))
            if operator in ("=", "==") and field == "metadata.name" and not self.name:
                self.name = value
            if operator in ("=", "==") and field == "metadata.namespace" and not self.namespace:
                self.namespace = value
        self.fields = selector if selector.requirements else None

    @property
    def everything(self) -> bool:
        return self.labels is None and self.fields is None

    def matches(self, obj: Object) -> bool:
        if self.labels is not None and not self.labels.matches(labels_of(obj)):
            return False
        if self.fields is not None:
            meta = metadata(obj)
            values = self._strategy.selectable_fields(obj)
            values["metadata.name"] = meta.get("name", "")
            values["metadata.namespace"] = meta.get("namespace", "")
            return self.fields.matches(values)
        return True


class Reads:
    """Reading, without any rule about writing. Raises StatusError as the API answers it."""

    def __init__(self, *, store: Store, caches: Caches, clock: Clock) -> None:
        self.store = store
        self.caches = caches
        self.clock = clock
        self.computed: Mapping[GVR, Computed] = {}
        """Who answers for resources of which nothing is stored."""
        self._cache_of: dict[tuple[str, str], WatchCache] = {}

    def cache(self, resource: Resource) -> WatchCache:
        """Where the resource's objects are kept, in storage form."""
        found = self._cache_of.get(resource.storage_key)
        if found is None:
            found = self._cache_of[resource.storage_key] = self.caches.of(*resource.storage_key)
        return found

    def key(self, resource: Resource, namespace: str, name: str) -> str:
        return key_for(*resource.storage_key, namespace if resource.namespaced else "", name)

    async def answer(self, resource: Resource, entry: Entry, code: int = 200) -> Answer:
        """An answer from what is stored, in the version that was asked for."""
        return Answer(stored=await self.shown(resource, entry), code=code)

    async def shown(self, resource: Resource, entry: Entry) -> Entry:
        """A stored state in the version of the resource."""
        if resource.conversion is None:
            return entry
        return resource.conversion.at_once(entry) or (await resource.conversion.shown([entry]))[0]

    async def get(self, resource: Resource, name: str, namespace: str = "", resource_version: str = "") -> Answer:
        """The live object. Raises 404, and 504 for a `resource_version` that the server has not reached."""
        if resource_version and resource_version != "0":
            self._check_reached(_version(resource_version))
        entry = self.cache(resource).get(namespace, name)
        if entry is None:
            raise not_found(resource.gvr.group_resource, name)
        return await self.answer(resource, entry)

    # -- list ------------------------------------------------------------------------------------------------------

    async def list(self, resource: Resource, options: ListOptions = NO_OPTIONS, *, namespace: str = "") -> ListPage:
        """The objects that the options select, in the order of their keys. Raises 400, 410 Expired, 504."""
        selection = Selection(resource, options)
        namespace = namespace or (selection.namespace if resource.namespaced else "")
        if resource.virtual:
            return await self._computed_page(resource, selection, namespace)
        version = options.resource_version
        number = _list_version(version)
        if options.continue_:
            if number:
                raise bad_request("specifying resource version is not allowed when using continue")
            revision, start = decode_continue(options.continue_)
            try:
                limit = 0 if version == "0" else options.limit
                return await self._page(resource, selection, namespace, limit, max(revision, 0), start)
            except Compacted:
                raise ContinueExpired(encode_continue(-1, start)) from None
        match = options.resource_version_match
        # Before resourceVersionMatch there was this rule: a limit at a revision means exactly that revision.
        if match == "Exact" or (not match and number and options.limit > 0):
            try:
                return await self._page(resource, selection, namespace, options.limit, number, "")
            except Compacted:
                raise expired(EXPIRED_LIST) from None
            except FutureRevision as error:
                raise too_large_version(number, error.current) from None
        self._check_reached(number)
        # "Any version" is answered whole: upstream's cache does not page there.
        limit = 0 if version == "0" else options.limit
        return await self._page(resource, selection, namespace, limit, 0, "")

    async def computed_answer(self, resource: Resource, name: str, namespace: str) -> Answer:
        """An object that is made now."""
        return Answer(await self.computed[resource.gvr].get(resource.gvr, name, namespace))

    async def _computed_page(self, resource: Resource, selection: Selection, namespace: str) -> ListPage:
        """All that is selected of what is made now; it has no revision and no pages."""
        found = filter(selection.matches, await self.computed[resource.gvr].list(resource.gvr, namespace))
        return ListPage([Entry("", 0, orjson.dumps(obj), obj) for obj in found], 0)

    async def _page(
        self, resource: Resource, selection: Selection, namespace: str, limit: int, revision: int, start: str
    ) -> ListPage:
        cache = self.cache(resource)
        prefix = prefix_for(*resource.storage_key, namespace)
        after = prefix + start if start else ""
        if revision and revision != cache.revision:
            entries = cache.list_at(revision, namespace)
        else:
            revision = cache.revision
            if selection.name and (namespace or not resource.namespaced):
                found = cache.get(namespace, selection.name)
                entries = [] if found is None else [found]
            else:
                entries = cache.list(namespace)
        if after:
            entries = entries[bisect.bisect_left(entries, after, key=_key) :]
        remaining: int | None = None
        continue_ = ""
        if not selection.everything:
            entries = [each for each in await versions.shown(resource, entries) if selection.matches(each.obj)]
        if 0 < limit < len(entries):
            remaining = len(entries) - limit if selection.everything else None
            entries = entries[:limit]
            continue_ = encode_continue(revision, entries[-1].key.removeprefix(prefix) + "\0")
        if selection.everything:
            entries = await versions.shown(resource, entries)
        return ListPage(entries, revision, continue_, remaining)

    def _check_reached(self, version: int) -> None:
        current = self.caches.revision
        if version > current:
            raise too_large_version(version, current)

    # -- watch -----------------------------------------------------------------------------------------------------

    def watch(self, resource: Resource, options: ListOptions, *, namespace: str = "") -> Watch:
        """Every change that the options select, from where they say. Raises 400, 500, 504; a revision that history no
        longer covers is told in the stream, as upstream does (`Watch.error`)."""
        selection = Selection(resource, options)
        namespace = namespace or (selection.namespace if resource.namespaced else "")
        version = _version(options.resource_version or "0")
        cache = self.cache(resource)
        initial: list[Entry] | None = None
        wants_state = options.send_initial_events
        if wants_state is None:
            wants_state = version == 0
        if wants_state:
            self._check_reached(version)
            found = cache.get(namespace, selection.name) if selection.name and namespace else None
            initial = ([found] if found else []) if selection.name and namespace else cache.list(namespace)
        after = cache.revision if wants_state or version == 0 else version
        name = selection.name if namespace or not resource.namespaced else ""
        try:
            watcher = cache.watch(after=min(after, cache.revision), namespace=namespace, name=name)
        except Compacted as error:
            text = f"too old resource version: {version} ({error.oldest - 1})"
            return Watch(resource, selection, None, [], after, error=expired(text))
        marks_end = bool(options.send_initial_events) and options.allow_bookmarks
        return Watch(resource, selection, watcher, initial or [], after, marks_end=marks_end)


class Watch:
    """One watch: `next()` gives the events that its selection lets through, in order, in batches.

    An object that begins to match is ADDED, one that no longer does is DELETED (in its last matching state, under the
    revision of the change). `revision` is the newest one of which nothing is missing.
    """

    def __init__(
        self,
        resource: Resource,
        selection: Selection,
        watcher: Watcher | None,
        initial: list[Entry],
        after: int,
        *,
        marks_end: bool = False,
        error: StatusError | None = None,
    ) -> None:
        self.resource = resource
        self.marks_end = marks_end
        """Whether the client waits for a bookmark that says the initial events are over."""
        self.error = error
        self._selection = selection
        self._watcher = watcher
        self._initial = initial
        self._after = after
        self.revision = after

    async def initial(self) -> list[Event]:
        """The state that the watch begins with, as ADDED events; asked for once. Raises StatusError where a state
        cannot be converted to the version that is watched."""
        entries, self._initial = self._initial, []
        events = [Event("ADDED", entry, None) for entry in await versions.shown(self.resource, entries)]
        return events if self._selection.everything else self._select(events)

    async def next(self, timeout_s: float | None) -> list[Event]:
        """The next events, at least one; [] when none came in time or the watch has ended (`ended`). Raises StatusError
        as `initial`."""
        watcher = self._watcher
        if watcher is None:
            return []
        events = await watcher.get(timeout_s=timeout_s)
        if not events:
            return []
        if events[0].revision <= self._after:
            events = [event for event in events if event.revision > self._after]
        self.revision = max(self.revision, events[-1].revision) if events else self.revision
        if self.resource.conversion is not None:
            events = await self._converted(events)
        return events if self._selection.everything else self._select(events)

    async def _converted(self, events: list[Event]) -> list[Event]:
        """In the version that is watched; what they were before only where the selection is to judge it."""
        befores = [] if self._selection.everything else [e.before for e in events if e.before is not None]
        made = iter(await versions.shown(self.resource, [*(event.entry for event in events), *befores]))
        entries = [next(made) for _ in events]
        return [
            Event(event.type, entry, next(made) if befores and event.before is not None else None)
            for event, entry in zip(events, entries, strict=True)
        ]

    @property
    def ended(self) -> bool:
        """The reader was too slow, or the server stops: the client must watch again."""
        return self._watcher is None or self._watcher.ended

    def close(self) -> None:
        if self._watcher is not None:
            self._watcher.close()

    def _select(self, events: list[Event]) -> list[Event]:
        found: list[Event] = []
        for event in events:
            matches = event.type != "DELETED" and self._matches(event.entry)
            matched = event.before is not None and self._matches(event.before)
            if event.type == "ADDED":
                if matches:
                    found.append(event)
            elif event.type == "DELETED":
                if matched:
                    found.append(event)
            elif matches:
                found.append(event if matched else Event("ADDED", event.entry, None))
            elif matched and event.before is not None:
                found.append(Event("DELETED", _at(event.before, event.revision), event.before))
        return found

    def _matches(self, entry: Entry) -> bool:
        return self._selection.matches(entry.obj)


def _at(entry: Entry, revision: int) -> Entry:
    """A state under another revision: what a watcher sees leave its selection."""
    obj = replace_in(entry.obj, ("metadata", "resourceVersion"), str(revision))
    return Entry(entry.key, revision, orjson.dumps(obj), obj)


def _key(entry: Entry) -> str:
    return entry.key


def _list_version(version: str) -> int:
    """A list's resourceVersion. Raises 400."""
    try:
        return parse_uint(version or "0")
    except ValueError as error:
        text = f"invalid resource version: resourceVersion: Invalid value: {go_quote(version)}: {error}"
        raise bad_request(text) from error


def _version(version: str) -> int:
    """The resourceVersion of a get or watch. Raises 500: upstream takes it for its own fault."""
    try:
        return parse_uint(version)
    except ValueError as error:
        raise StatusError(500, "", f"resourceVersion: Invalid value: {go_quote(version)}: {error}") from error
