"""Indexes over a cache: objects by what they point at ("pods by node"), kept as events come, so that loops need not
search."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from kone.apimachinery.objects import Object
from kone.store.store import Entry, Event

Keys = Callable[[Object], Iterable[str]]


class Index:
    """Entries by the strings that `keys` finds in their objects; an object may have several or none."""

    def __init__(self, keys: Keys, entries: Iterable[Entry]) -> None:
        self._keys = keys
        self._entries: dict[str, dict[str, Entry]] = {}
        self.load(entries)

    def load(self, entries: Iterable[Entry]) -> None:
        """Begin anew with these."""
        self._entries.clear()
        for entry in entries:
            self._put(entry)

    def get(self, key: str) -> list[Entry]:
        """In the order of the objects' keys."""
        found = self._entries.get(key)
        if not found:
            return []
        return list(found.values()) if len(found) == 1 else [found[name] for name in sorted(found)]

    def apply(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.before is not None:
                self._remove(event.before)
            if event.type != "DELETED":
                self._put(event.entry)

    def _put(self, entry: Entry) -> None:
        for key in self._keys(entry.obj):
            self._entries.setdefault(key, {})[entry.key] = entry

    def _remove(self, entry: Entry) -> None:
        for key in self._keys(entry.obj):
            found = self._entries.get(key)
            if found is not None:
                found.pop(entry.key, None)
                if not found:
                    del self._entries[key]
