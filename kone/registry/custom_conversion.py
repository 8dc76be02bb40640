"""Custom resources between what is stored and what is served: read by the schema as it is today, in the version asked
for.

What is stored was right when it was written. Since then a field may have left the schema, a default may have come to
it, another version may be the stored one. So every state is read anew: pruned and defaulted by the schema of the
version in which it lies there, then converted (strategy None: it is called by the other name; Webhook: somebody is
asked) and pruned by that version's schema. What was made of a state is remembered, and shared by all who ask for it.
Rules: k8s.io/apiextensions-apiserver, pkg/apiserver (crdConversionRESTOptionsGetter).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import orjson

from kone.apimachinery import structural_schema
from kone.apimachinery.errors import StatusError
from kone.apimachinery.objects import Object, deep_copy
from kone.apimachinery.structural_schema import Structural
from kone.store.store import Entry

Ask = Callable[[Sequence[Object], str], Awaitable[list[Object]]]
"""(objects, an apiVersion) -> the same in that version, in their order. Raises StatusError."""

REMEMBERED: Final = 20_000  # states whose outcome is kept, a version
BATCH: Final = 100  # objects that a webhook is asked for at once
BREATH: Final = 200  # states read before others may run


class CustomConversion:
    """One version of a definition. `schemas` are those of all its versions, by apiVersion; `ask` is its webhook."""

    def __init__(
        self, api_version: str, stored_as: str, schemas: Mapping[str, Structural], ask: Ask | None = None
    ) -> None:
        self._api_version = api_version
        self._stored_as = stored_as
        self._schemas = schemas
        self._ask = ask
        self._made: dict[str, list[Entry]] = {}
        self._asked: dict[Entry, asyncio.Event] = {}

    @property
    def by_name_alone(self) -> bool:
        return self._ask is None

    def at_once(self, entry: Entry) -> Entry | None:
        made = self._remembered(entry)
        if made is not None:
            return made
        if self._ask is not None and entry.obj.get("apiVersion") != self._api_version:
            return None
        obj = self._read(entry.obj)
        if obj.get("apiVersion") != self._api_version:
            obj = self._coerced({**obj, "apiVersion": self._api_version})
        return self._keep(entry, obj)

    async def shown(self, entries: Sequence[Entry]) -> list[Entry]:
        found: list[Entry | None] = []
        for i, entry in enumerate(entries, 1):
            found.append(self.at_once(entry))
            if i % BREATH == 0:
                await asyncio.sleep(0)
        missing = [entry for entry, made in zip(entries, found, strict=True) if made is None]
        if not missing:
            return [made for made in found if made is not None]
        made_of = await self._fetched(missing)
        return [made if made is not None else made_of[entry] for entry, made in zip(entries, found, strict=True)]

    async def from_storage(self, obj: Object) -> Object:
        if obj.get("apiVersion") == self._api_version:
            return self._read(obj)
        return await self._in(self._read(obj), self._api_version)

    async def to_storage(self, obj: Object) -> Object:
        return obj if self._api_version == self._stored_as else await self._in(obj, self._stored_as)

    def remember(self, entry: Entry) -> None:
        if self._api_version == self._stored_as:
            self._keep(entry, entry.obj)

    # -- one object ------------------------------------------------------------------------------------------------

    def _read(self, obj: Object) -> Object:
        """As the schema of its own version reads it today: itself where nothing is to be done. Raises StatusError."""
        root = self._schemas.get(obj.get("apiVersion", ""))
        if root is None:
            at = obj.get("apiVersion", "")
            raise StatusError(500, "", f"request to convert CR from an invalid group/version: {at}")
        found: Object = deep_copy(obj)
        structural_schema.prune(found, root)
        structural_schema.drop_nulls(found, root)
        structural_schema.set_defaults(found, root)
        meta = found.get("metadata")  # server-side apply converts parts of objects, which may have none
        if meta is not None and not meta.get("generation"):
            meta["generation"] = 1
        return obj if found == obj else found

    def _coerced(self, obj: Object) -> Object:
        """A converted object as the schema of its version reads it; defaults are not its business."""
        found: Object = deep_copy(obj)
        root = self._schemas[found["apiVersion"]]
        structural_schema.prune(found, root)
        structural_schema.drop_nulls(found, root)
        return found

    async def _in(self, obj: Object, api_version: str) -> Object:
        if self._ask is None:
            return self._coerced({**obj, "apiVersion": api_version})
        (made,) = await self._ask([obj], api_version)
        return self._coerced(made)

    # -- what was made ---------------------------------------------------------------------------------------------

    def _remembered(self, entry: Entry) -> Entry | None:
        return next((made for made in self._made.get(entry.key, ()) if made.revision == entry.revision), None)

    def _keep(self, entry: Entry, obj: Object) -> Entry:
        """Of an object its two newest states are kept: who watches a selection compares them."""
        made = entry if obj is entry.obj else Entry(entry.key, entry.revision, orjson.dumps(obj), obj)
        others = [each for each in self._made.pop(entry.key, ()) if each.revision != made.revision]
        self._made[entry.key] = sorted([made, *others], key=lambda each: -each.revision)[:2]
        if len(self._made) > REMEMBERED:
            del self._made[next(iter(self._made))]
        return made

    async def _fetched(self, entries: Sequence[Entry]) -> dict[Entry, Entry]:
        """What the webhook makes of each. Nobody asks for a state that somebody else is asking for."""
        found: dict[Entry, Entry] = {}
        for start in range(0, len(entries), BATCH):
            batch = entries[start : start + BATCH]
            for under_way in {self._asked[entry] for entry in batch if entry in self._asked}:
                await under_way.wait()
            left = []
            for entry in batch:
                made = self._remembered(entry)
                if made is None:
                    left.append(entry)
                else:
                    found[entry] = made
            if left:
                found |= await self._fetch(left)
        return found

    async def _fetch(self, entries: Sequence[Entry]) -> dict[Entry, Entry]:
        assert self._ask is not None, "without a webhook every state is shown at once"
        over = asyncio.Event()
        mine = [entry for entry in entries if entry not in self._asked]
        self._asked |= dict.fromkeys(mine, over)
        try:
            objects = await self._ask([self._read(entry.obj) for entry in entries], self._api_version)
            return {entry: self._keep(entry, self._coerced(obj)) for entry, obj in zip(entries, objects, strict=True)}
        finally:
            for entry in mine:
                del self._asked[entry]
            over.set()
