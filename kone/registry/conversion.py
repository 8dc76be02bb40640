"""Between the form in which objects are stored and the versions that clients speak.

A resource without a Conversion is stored as it is spoken. The few built-in kinds with two versions are converted by a
pair of functions; custom resources by registry/custom_conversion.py, which may have to ask a webhook: so everything
that reads or writes an object in another version may have to wait.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import orjson

from kone.apimachinery.objects import Object
from kone.store.store import Entry


class Conversion(Protocol):
    """From storage to one version and back. What is given is not changed; what is answered is read-only.

    The methods that wait raise StatusError where an object cannot be converted.
    """

    @property
    def by_name_alone(self) -> bool:
        """Whether the versions differ by name alone."""

    def at_once(self, entry: Entry) -> Entry | None:
        """A stored state in this version, under its key and revision; None where somebody else has to be asked."""

    async def shown(self, entries: Sequence[Entry]) -> list[Entry]:
        """Stored states in this version, each under its key and revision, in their order."""

    async def from_storage(self, obj: Object) -> Object:
        """An object in the form that is stored (of a custom resource: of any version) in this version."""

    async def to_storage(self, obj: Object) -> Object:
        """An object of this version as it is stored."""

    def remember(self, entry: Entry) -> None:
        """An object that was written in this version is stored: where the two are the same, nothing is left to do."""


class Renaming:
    """A Conversion of a built-in kind: two functions that are each other's inverse."""

    def __init__(self, to_storage: Callable[[Object], Object], from_storage: Callable[[Object], Object]) -> None:
        self._to_storage = to_storage
        self._from_storage = from_storage

    @property
    def by_name_alone(self) -> bool:
        return False

    def at_once(self, entry: Entry) -> Entry:
        obj = self._from_storage(entry.obj)
        return Entry(entry.key, entry.revision, orjson.dumps(obj), obj)

    async def shown(self, entries: Sequence[Entry]) -> list[Entry]:
        return [self.at_once(entry) for entry in entries]

    async def from_storage(self, obj: Object) -> Object:
        return self._from_storage(obj)

    async def to_storage(self, obj: Object) -> Object:
        return self._to_storage(obj)

    def remember(self, entry: Entry) -> None:
        """What is stored is never what is spoken."""
