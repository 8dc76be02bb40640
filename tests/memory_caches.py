"""Caches without a store: what auth and admission read, filled by the test itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from kone.apimachinery.kinds import GVR
from kone.apimachinery.objects import Key, Object, key_of


@dataclass(frozen=True, slots=True)
class Entry:
    obj: Object


class MemoryCache:
    """Keeps cache.WatchCache's contract for get, list, subscribe and indexes."""

    def __init__(self) -> None:
        self._objects: dict[Key, Entry] = {}
        self._handlers: list[Callable[[Any], None]] = []
        self._indexes: dict[str, Callable[[Object], Iterable[str]]] = {}

    def get(self, namespace: str, name: str) -> Entry | None:
        return self._objects.get(Key(namespace, name))

    def list(self, namespace: str = "") -> list[Entry]:
        return [self._objects[key] for key in sorted(self._objects) if not namespace or key.namespace == namespace]

    def subscribe(self, handler: Callable[[Any], None]) -> Callable[[], None]:
        self._handlers.append(handler)
        return lambda: self._handlers.remove(handler)

    def add_index(self, name: str, keys: Callable[[Object], Iterable[str]]) -> None:
        self._indexes[name] = keys

    def by_index(self, name: str, key: str) -> list[Entry]:
        return [entry for entry in self.list() if key in self._indexes[name](entry.obj)]

    def put(self, obj: Object) -> None:
        self._objects[key_of(obj)] = Entry(obj)
        self._tell()

    def remove(self, namespace: str, name: str) -> None:
        del self._objects[Key(namespace, name)]
        self._tell()

    def _tell(self) -> None:
        for handler in list(self._handlers):
            handler(None)


class MemoryCaches:
    def __init__(self) -> None:
        self._caches: dict[tuple[str, str], MemoryCache] = {}

    def of(self, group: str, resource: str) -> MemoryCache:
        return self._caches.setdefault((group, resource), MemoryCache())

    def put(self, resource: GVR, *objects: Object) -> None:
        for obj in objects:
            self.of(resource.group, resource.resource).put(obj)
