"""What the API serves and every informer sees: per resource the current objects and the recent events, all in memory.

The store calls in with every batch of events before it answers their writers, so a reader that has been answered never
sees older state. Watchers read one shared ring by position: an event costs the same for one watcher and for a hundred,
but for one wake-up each a batch, and who is too slow is dropped, never waited for.
"""

from __future__ import annotations

import logging
from bisect import bisect_left, insort
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import TypeVar

from kone.aio.broadcast import Reader, Ring
from kone.cache.index import Index, Keys
from kone.store.store import ROOT, Compacted, Entry, Event, FutureRevision, Store, prefix_for, prefix_of

__all__ = ["Caches", "Entry", "Event", "WatchCache", "Watcher"]

log = logging.getLogger(__name__)

Handler = Callable[[Event], None]
Entries = list[Entry]  # a class with a method named list needs another name for the type
BUFFER = 10_000  # events that a watcher may lag


class Watcher:
    """The events of one resource, or of one namespace or object in it, from a revision on. Iterates over batches, never
    empty ones, and ends when it is closed or dropped. Example:

        async for events in pods.watch(after=revision, namespace="default"):
            for event in events: ...
    """

    def __init__(self, reader: Reader[Event], cache: WatchCache, wanted: Callable[[Event], bool] | None) -> None:
        self._reader = reader
        self._cache = cache
        self._wanted = wanted

    @property
    def dropped(self) -> bool:
        """It was too slow: its next events have left the window, or it lagged more than its buffer. Its client starts
        anew."""
        return self._reader.dropped

    @property
    def ended(self) -> bool:
        """Dropped or closed: nothing will come any more."""
        return self._reader.ended

    @property
    def lag(self) -> int:
        """How many events of the resource wait for this watcher."""
        return self._reader.lag

    @property
    def revision(self) -> int:
        """Everything up to this revision has been read: what a bookmark may say."""
        return self._cache.revision_before(self._reader)

    def get_nowait(self) -> list[Event]:
        """The events that have come since the last call; [] when there are none."""
        return self._filtered(self._reader.get_nowait())

    async def get(self, *, timeout_s: float | None = None) -> list[Event]:
        """The next events; [] when `timeout_s` is up, the watcher has ended, or what came is not for this watcher."""
        return self._filtered(await self._reader.get(timeout_s=timeout_s))

    async def __aiter__(self) -> AsyncIterator[list[Event]]:
        while not self._reader.ended:
            if events := await self.get():
                yield events

    def close(self) -> None:
        """Stop watching. A `get` that is waiting ends with the resource's next event; cancel its task to end it at
        once."""
        self._reader.close()

    def _filtered(self, events: list[Event]) -> list[Event]:
        return events if self._wanted is None else [event for event in events if self._wanted(event)]


class WatchCache:
    """One resource. Everything is synchronous and in memory; entries and events are shared: read-only."""

    def __init__(self, store: Store, prefix: str, oldest: int) -> None:
        self._store = store
        self._prefix = prefix
        self._oldest = oldest
        self._entries: dict[str, Entry] = {}
        self._keys: list[str] = []  # sorted
        self._events: Ring[Event] = Ring()
        self._bytes = 0
        self._handlers: list[Handler] = []
        self._indexes: dict[str, Index] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def revision(self) -> int:
        """The store's revision as of now."""
        return self._store.revision

    @property
    def average_bytes(self) -> float:
        """Of an object as it is stored; 0.0 where there is none."""
        return self._bytes / len(self._entries) if self._entries else 0.0

    @property
    def oldest(self) -> int:
        """The oldest revision that this resource can be watched after and listed at."""
        return self._oldest

    def get(self, namespace: str, name: str) -> Entry | None:
        return self._entries.get(f"{self._prefix}{namespace}/{name}" if namespace else self._prefix + name)

    def list(self, namespace: str = "") -> Entries:
        """The objects in the order of their keys; of all namespaces for ""."""
        entries = self._entries
        if not namespace:
            return [entries[key] for key in self._keys]
        first, last = self._range(namespace)
        return [entries[key] for key in self._keys[first:last]]

    def count(self, namespace: str = "") -> int:
        first, last = self._range(namespace) if namespace else (0, len(self._keys))
        return last - first

    def list_at(self, revision: int, namespace: str = "") -> Entries:
        """The objects as they were at `revision`, in the order of their keys. Raises Compacted, FutureRevision."""
        self._check_known(revision)
        past = dict(self._entries)
        for event in reversed(self._events.since(self._position_after(revision))):
            if event.before is None:
                past.pop(event.key, None)
            else:
                past[event.key] = event.before
        prefix = f"{self._prefix}{namespace}/" if namespace else self._prefix
        return [past[key] for key in sorted(past) if key.startswith(prefix)]

    def watch(self, *, after: int, namespace: str = "", name: str = "", buffer: int = BUFFER) -> Watcher:
        """Every event with revision > after, in order, none twice, of one namespace and name if given.

        A watcher that lags more than `buffer` events is dropped. Raises Compacted, FutureRevision.
        """
        self._check_known(after)
        reader = Reader(self._events, self._position_after(after), max_lag=buffer)
        return Watcher(reader, self, self._selector(namespace, name))

    def subscribe(self, handler: Handler) -> Callable[[], None]:
        """Call `handler` with every event from now on, synchronously, before the write is answered. Returns what ends
        it."""
        self._handlers.append(handler)

        def unsubscribe() -> None:
            if handler in self._handlers:
                self._handlers.remove(handler)

        return unsubscribe

    def add_index(self, name: str, keys: Keys) -> None:
        """Keep the objects by what `keys` finds in them. A name that is known already keeps its first meaning."""
        if name not in self._indexes:
            self._indexes[name] = Index(keys, self._entries.values())

    def by_index(self, name: str, key: str) -> Entries:
        """In the order of the objects' keys. Raises KeyError for an index that nobody added."""
        return self._indexes[name].get(key)

    # Fed by Caches

    def load(self, entries: Sequence[Entry], events: Sequence[Event], oldest: int) -> None:
        """Start with these objects (sorted by key) and the recent events, later than `oldest`, that led to them."""
        self._oldest = oldest
        self._entries = {entry.key: entry for entry in entries}
        self._keys = [entry.key for entry in entries]
        self._bytes = sum(len(entry.encoded) for entry in entries)
        for index in self._indexes.values():
            index.load(entries)
        self._events.publish(events)

    def apply(self, events: Sequence[Event]) -> None:
        """Take over a batch of events, newest last, and wake the watchers."""
        for event in events:
            key = event.key
            if event.type == "DELETED":
                if (gone := self._entries.pop(key, None)) is not None:
                    self._bytes -= len(gone.encoded)
                    del self._keys[bisect_left(self._keys, key)]
            else:
                replaced = self._entries.get(key)
                if replaced is None:
                    insort(self._keys, key)
                else:
                    self._bytes -= len(replaced.encoded)
                self._bytes += len(event.encoded)
                self._entries[key] = event.entry
        for name, index in self._indexes.items():
            try:
                index.apply(events)
            except Exception:
                log.exception("index %s of %s failed on revisions up to %d", name, self._prefix, events[-1].revision)
        self._events.publish(events)

    def tell(self, event: Event) -> None:
        """Call the handlers."""
        for handler in tuple(self._handlers):
            try:
                handler(event)
            except Exception:
                log.exception("a handler failed on %s %s", event.type, event.key)

    def forget(self, oldest: int) -> None:
        """Let go of the events at or below `oldest`."""
        gone = self._events.trim(self._position_after(oldest))
        if gone:
            self._oldest = gone[-1].revision

    def revision_before(self, reader: Reader[Event]) -> int:
        """Up to which revision a reader has seen everything."""
        if not reader.lag:
            return self.revision
        return self._events[self._events.end - reader.lag].revision - 1

    def _range(self, namespace: str) -> tuple[int, int]:
        prefix = f"{self._prefix}{namespace}"
        return bisect_left(self._keys, prefix + "/"), bisect_left(self._keys, prefix + "0")  # "0" follows "/"

    def _check_known(self, revision: int) -> None:
        if revision < self._oldest:
            raise Compacted(self._oldest)
        if revision > self.revision:
            raise FutureRevision(self.revision)

    def _position_after(self, revision: int) -> int:
        return self._events.bisect(lambda event: event.revision > revision)

    def _selector(self, namespace: str, name: str) -> Callable[[Event], bool] | None:
        if name and namespace:
            key = f"{self._prefix}{namespace}/{name}"
            return lambda event: event.key == key
        if name:  # of a cluster-scoped resource, or the same name in every namespace
            ending = "/" + name
            return lambda event: event.key.endswith(ending)
        if namespace:
            prefix = f"{self._prefix}{namespace}/"
            return lambda event: event.key.startswith(prefix)
        return None


class Caches:
    """The watch caches of all resources, fed by one store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._caches: dict[str, WatchCache] = {}
        self._oldest = 0
        self._early: list[Event] | None = []  # what comes while the start reads the state

    @property
    def revision(self) -> int:
        """The store's revision as of now."""
        return self.store.revision

    async def start(self) -> None:
        """Load every object and what is known of history, and follow the store from there on. Once."""
        early = self._early
        assert early is not None, "started twice"
        self.store.listen(self._receive, compacted=self._forget)
        history, self._oldest = self.store.history(), self.store.oldest
        page = await self.store.list(ROOT)
        entries = _by_resource(page.entries)
        events = _by_resource([event for event in (*history, *early) if event.revision <= page.revision])
        for prefix in entries.keys() | events.keys() | self._caches.keys():
            self._at(prefix).load(entries.get(prefix, ()), events.get(prefix, ()), self._oldest)
        self._early = None
        if later := [event for event in early if event.revision > page.revision]:
            self._receive(later)

    def of(self, group: str, resource: str) -> WatchCache:
        """The cache of a stored resource; made, empty, when it is new."""
        return self._at(prefix_for(group, resource))

    def _at(self, prefix: str) -> WatchCache:
        cache = self._caches.get(prefix)
        if cache is None:
            cache = self._caches[prefix] = WatchCache(self.store, prefix, self._oldest)
        return cache

    def _receive(self, events: Sequence[Event]) -> None:
        """Every cache shows the whole batch before the first handler hears of it."""
        if self._early is not None:
            self._early.extend(events)
            return
        if len(events) == 1:
            cache = self._at(prefix_of(events[0].key))
            cache.apply(events)
            cache.tell(events[0])
            return
        for prefix, batch in _by_resource(events).items():
            self._at(prefix).apply(batch)
        for event in events:
            self._at(prefix_of(event.key)).tell(event)

    def _forget(self, oldest: int) -> None:
        for cache in self._caches.values():
            cache.forget(oldest)


Keyed = TypeVar("Keyed", Entry, Event)


def _by_resource(items: Iterable[Keyed]) -> dict[str, list[Keyed]]:
    found: dict[str, list[Keyed]] = {}
    for item in items:
        found.setdefault(prefix_of(item.key), []).append(item)
    return found
