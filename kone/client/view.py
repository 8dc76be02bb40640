"""The state behind an informer: objects by key, indexes kept as objects change, and the handlers that are told.

Whatever feeds it (a list and watch over HTTPS, a fake in tests) calls `apply` and `replace`; nobody else changes it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from kone.apimachinery.objects import Key, Object, key_of, resource_version_of, uid_of
from kone.client.client import EventType, Handler, Objects, Unsubscribe

log = logging.getLogger(__name__)


class _Index:
    """Objects by the strings that `keys` gives for them."""

    def __init__(self, keys: Callable[[Object], Iterable[str]]) -> None:
        self.keys = keys
        self.entries: dict[str, dict[Key, Object]] = {}

    def add(self, key: Key, obj: Object) -> None:
        for value in self.keys(obj):
            self.entries.setdefault(value, {})[key] = obj

    def discard(self, key: Key, obj: Object) -> None:
        for value in self.keys(obj):
            if (found := self.entries.get(value)) is not None:
                found.pop(key, None)
                if not found:
                    del self.entries[value]


class View:
    """An Informer over objects that someone feeds it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._objects: dict[str, dict[str, Object]] = {}
        self._indexes: dict[str, _Index] = {}
        self._handlers: list[Handler] = []
        self._synced = asyncio.Event()

    @property
    def synced(self) -> bool:
        return self._synced.is_set()

    async def wait_synced(self) -> None:
        await self._synced.wait()

    def get(self, namespace: str, name: str) -> Object | None:
        return self._objects.get(namespace, {}).get(name)

    def list(self, namespace: str = "") -> Objects:
        namespaces = [namespace] if namespace else sorted(self._objects)
        return [obj for ns in namespaces for _, obj in sorted(self._objects.get(ns, {}).items())]

    def subscribe(self, handler: Handler) -> Unsubscribe:
        for obj in self.list():
            _tell(self.name, handler, "ADDED", obj, None)
        self._handlers.append(handler)
        return lambda: self._handlers.remove(handler)

    def add_index(self, name: str, keys: Callable[[Object], Iterable[str]]) -> None:
        if name in self._indexes:
            return
        index = self._indexes[name] = _Index(keys)
        for obj in self.list():
            index.add(key_of(obj), obj)

    def by_index(self, name: str, key: str) -> Objects:
        return [obj for _, obj in sorted(self._indexes[name].entries.get(key, {}).items())]

    def apply(self, kind: EventType, obj: Object) -> None:
        """One event from the watch: ADDED and MODIFIED put the object, DELETED takes it away."""
        key = key_of(obj)
        previous = self.get(*key)
        if previous is not None:
            for index in self._indexes.values():
                index.discard(key, previous)
            if kind == "DELETED":
                self._remove(key)
        elif kind == "DELETED":
            return
        if kind != "DELETED":
            kind = "ADDED" if previous is None else "MODIFIED"
            self._objects.setdefault(key.namespace, {})[key.name] = obj
            for index in self._indexes.values():
                index.add(key, obj)
        for handler in list(self._handlers):
            _tell(self.name, handler, kind, obj, previous)

    def replace(self, objects: Iterable[Object]) -> None:
        """A new list: what is not in it is gone, what has another resourceVersion has changed. Then it is synced."""
        current = {key_of(obj): obj for obj in objects}
        for old in self.list():
            new = current.get(key_of(old))
            if new is None or uid_of(new) != uid_of(old):
                self.apply("DELETED", old)
        for key, obj in current.items():
            known = self.get(*key)
            if known is None or resource_version_of(known) != resource_version_of(obj):
                self.apply("MODIFIED", obj)
        self._synced.set()

    def _remove(self, key: Key) -> None:
        namespace = self._objects[key.namespace]
        del namespace[key.name]
        if not namespace:
            del self._objects[key.namespace]


def _tell(view: str, handler: Handler, kind: EventType, obj: Object, previous: Object | None) -> None:
    try:
        handler(kind, obj, previous)
    except Exception:
        log.exception("a handler of the informer %s failed: event=%s object=%s", view, kind, key_of(obj))
