"""The store's contract on one screen: every object under one totally ordered revision, one writer, bounded history.

Keys are "/registry/<group, "core" for the core one>/<resource>/[<namespace>/]<name>". A revision is given to one write
only and is never given again, whatever happens to the process. Example: make an object, then change it only if nobody
else did:

    [made] = await store.commit(Write(key, pod, expected=0))
    await store.commit(Write(key, replace_in(made.obj, ("status",), status), expected=made.revision))

opening.py opens one; the implementation is log_store.py over sql.py, so that who only needs the words pays for no SQL.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import orjson

from kone.apimachinery.objects import Object

ROOT = "/registry/"


def prefix_for(group: str, resource: str, namespace: str = "") -> str:
    """Where a resource's keys begin: ("", "pods", "default") -> "/registry/core/pods/default/"."""
    prefix = f"{ROOT}{group or 'core'}/{resource}/"
    return f"{prefix}{namespace}/" if namespace else prefix


def key_for(group: str, resource: str, namespace: str, name: str) -> str:
    """An object's key; `namespace` is "" for cluster-scoped resources."""
    return prefix_for(group, resource, namespace) + name


def prefix_of(key: str) -> str:
    """Where the keys of an object's resource begin: "/registry/core/pods/default/web" -> "/registry/core/pods/"."""
    return key[: key.index("/", key.index("/", len(ROOT)) + 1) + 1]


class StoreError(Exception):
    """What a store refuses or cannot do. The text is one line, fit to be shown to who runs the server."""


class KeyExists(StoreError):
    """A write with expected=0 met an object. `actual` is its revision."""

    def __init__(self, key: str, actual: int) -> None:
        super().__init__(f"{key} exists at revision {actual}")
        self.key = key
        self.actual = actual


class KeyMissing(StoreError):
    """A delete, or a write that expects a revision, met nothing."""

    def __init__(self, key: str) -> None:
        super().__init__(f"{key} does not exist")
        self.key = key


class RevisionConflict(StoreError):
    """A write expected another revision than `actual`."""

    def __init__(self, key: str, expected: int, actual: int) -> None:
        super().__init__(f"{key} is at revision {actual}, not {expected}")
        self.key = key
        self.expected = expected
        self.actual = actual


class Compacted(StoreError):
    """The revision has left the window of history; `oldest` is the first that can still be listed at and watched
    from."""

    def __init__(self, oldest: int) -> None:
        super().__init__(f"history begins at revision {oldest}")
        self.oldest = oldest


class FutureRevision(StoreError):
    """The revision has not come yet; `current` is the newest committed one."""

    def __init__(self, current: int) -> None:
        super().__init__(f"the newest revision is {current}")
        self.current = current


class StoreClosed(StoreError):
    """The store was closed before the write was taken; nothing was written."""

    def __init__(self) -> None:
        super().__init__("the store is closed")


class DatastoreError(StoreError):
    """The database cannot be opened or written. The text says what to do."""


class DatastoreLocked(DatastoreError):
    """Another process has this database open."""


class DatastoreTooNew(DatastoreError):
    """A newer kone has written this database's schema."""


class DatastoreUnwritable(DatastoreError):
    """The place of the database cannot be made or written."""


class DatastoreFailed(DatastoreError):
    """The database failed a commit: the disk is full or broken, or the server is gone. The write may be tried again."""


@dataclass(frozen=True, slots=True)
class Write:
    """One change. `obj` None deletes; otherwise the store writes a path copy whose metadata.resourceVersion is the
    revision."""

    key: str
    obj: Object | None
    expected: int | None = None  # 0: must not exist; n: must be at revision n; None: no matter
    # Heartbeats: revision and event as for any write, but a crash may undo it. Honoured for changes of an object whose
    # stored state was written as volatile too; its creation and deletion are always durable.
    volatile: bool = False


class Entry:
    """The state of one object at one revision: `encoded` is the JSON that is stored and served, `obj` the same, decoded
    when first asked for. Read-only. Equal when key and revision are."""

    __slots__ = ("_obj", "encoded", "key", "revision")

    def __init__(self, key: str, revision: int, encoded: bytes, obj: Object | None = None) -> None:
        self.key = key
        self.revision = revision
        self.encoded = encoded
        self._obj = obj

    @property
    def obj(self) -> Object:
        obj = self._obj
        if obj is None:
            obj = self._obj = self._decode()
        return obj

    def release(self) -> None:
        """Keep the bytes only; `obj` is decoded again if somebody asks. For states that only history remembers."""
        self._obj = None

    def _decode(self) -> Object:
        decoded: Object = orjson.loads(self.encoded)
        return decoded

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Entry) and other.key == self.key and other.revision == self.revision

    def __hash__(self) -> int:
        return hash(self.revision)

    def __repr__(self) -> str:
        return f"Entry({self.key!r}, {self.revision})"


EventType = Literal["ADDED", "MODIFIED", "DELETED"]


class Event:
    """One committed change. For DELETED, `entry` is the last state under the deletion's own revision. `before` is the
    state that it replaced, None for ADDED. The entries are the very ones that lists serve, so nothing is decoded or
    encoded twice."""

    __slots__ = ("before", "encoded", "entry", "key", "revision", "type")

    def __init__(self, type: EventType, entry: Entry, before: Entry | None) -> None:
        self.type: EventType = type
        self.entry = entry
        self.before = before
        self.key = entry.key
        self.revision = entry.revision
        self.encoded = entry.encoded

    @property
    def obj(self) -> Object:
        return self.entry.obj

    @property
    def previous(self) -> Object | None:
        return None if self.before is None else self.before.obj

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Event) and other.type == self.type and other.entry == self.entry

    def __hash__(self) -> int:
        return hash(self.revision)

    def __repr__(self) -> str:
        return f"Event({self.type}, {self.key!r}, {self.revision})"


@dataclass(frozen=True, slots=True)
class Page:
    """A piece of a list: `entries` in the order of their keys as they were at `revision`; `remaining` more follow."""

    entries: list[Entry]
    revision: int
    remaining: int = 0

    @property
    def more(self) -> bool:
        return self.remaining > 0


Listener = Callable[[Sequence[Event]], None]


class Sealer(Protocol):
    """Encrypts at rest: what stands for an object's JSON where it is stored (auth.encryption)."""

    def seal(self, key: str, value: bytes) -> bytes:
        """The value as it is stored; the very same object where it is stored as it is."""

    def unseal(self, key: str, stored: bytes) -> tuple[bytes, bool]:
        """(the value, whether `seal` would store it otherwise now). Raises sealing.SealError."""


class Store(Protocol):
    """Every object under one totally ordered revision. One writer."""

    @property
    def revision(self) -> int:
        """The newest committed revision; 1 in a new store."""

    @property
    def problem(self) -> str:
        """What is wrong with the database as far as the last write knows; "" for nothing."""

    @property
    def oldest(self) -> int:
        """The oldest revision that can be listed at and watched after."""

    async def commit(self, *writes: Write) -> list[Event]:
        """Write all or nothing; durable when it returns, and every listener has seen it. One event, with its own
        revision, a write.

        Raises KeyExists, KeyMissing, RevisionConflict, DatastoreFailed. A caller that is cancelled meanwhile is told
        the outcome all the same, and raises CancelledError at its next await.
        """

    async def get(self, key: str) -> Entry | None: ...

    async def list(self, prefix: str, *, revision: int = 0, limit: int = 0, after: str = "") -> Page:
        """The objects under `prefix` whose key is greater than `after`, as of `revision` (0: now); at most `limit` (0:
        all).

        Raises Compacted, FutureRevision.
        """

    def watch(self, prefix: str, *, after: int) -> AsyncIterator[Event]:
        """Every event under `prefix` with revision > after, in order, none twice, without end.

        Raises, on the first step, Compacted or FutureRevision; later Compacted when the reader was slower than history
        is long.
        """

    def history(self) -> Sequence[Event]:
        """The events that are still known, with revisions > oldest, in order."""

    def listen(self, listener: Listener, *, compacted: Callable[[int], None] | None = None) -> None:
        """Call `listener` with every batch of events, synchronously, in order, after it is durable and before its
        commit() returns.

        `compacted(oldest)` is called when the window of history has moved up.
        """

    async def reseal(self, sealer: Sealer) -> int:
        """Store values as `sealer` does from now on, and rewrite those that are stored otherwise, history too; how many
        that were.

        Values of the sealer before can be read until it returns. Raises DatastoreFailed; the next attempt goes on.
        """

    async def close(self) -> None:
        """Finish what was asked for, keep volatile state too, and let go of the database. May be called twice."""


@dataclass(frozen=True, slots=True)
class Retention:
    """How much history is kept for watches that resume and lists that continue; whichever bound is met first counts."""

    max_events: int = 50_000
    max_bytes: int = 32 * 2**20  # of encoded objects
    max_age_s: float = 300.0  # upstream compacts every 5 min, so that clients are used to no more than that
