"""What is encrypted at rest is encrypted here, between the store and its log: nothing above knows, nothing below sees.

A row's value is what the `Sealer` makes of the object's JSON. When the sealer changes, rows that another one made are
rewritten in place, history too, in pieces; so a new key holds for everything, and what was plain is so no longer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from kone.store.log import Log, Row
from kone.store.store import DatastoreError, Sealer

ENCRYPTED = b"k8s:enc:"


class SealError(ValueError):
    """A value cannot be read with the keys at hand; the text is upstream's."""


class Plain:
    """The sealer of a store that encrypts nothing."""

    def seal(self, key: str, value: bytes) -> bytes:
        return value

    def unseal(self, key: str, stored: bytes) -> tuple[bytes, bool]:
        if stored.startswith(ENCRYPTED):
            raise SealError("identity transformer tried to read encrypted data")
        return stored, False


class _Either:
    """Seals as `new` does, reads what either has sealed."""

    def __init__(self, new: Sealer, old: Sealer) -> None:
        self._new, self._old = new, old
        self.seal = new.seal

    def unseal(self, key: str, stored: bytes) -> tuple[bytes, bool]:
        try:
            return self._new.unseal(key, stored)
        except SealError:
            return self._old.unseal(key, stored)[0], True


class SealedLog:
    """A log whose values are sealed. Implements `Log` but for what only it uses."""

    def __init__(self, log: Log, sealer: Sealer) -> None:
        self._log = log
        self._sealer = sealer
        self.is_stale = False
        """Whether `rows` met a value that another sealer made."""
        self.marks, self.mark, self.forget = log.marks, log.mark, log.forget
        self.shrink, self.close, self.scrub = log.shrink, log.close, log.scrub

    async def rows(self, *, after: int) -> AsyncIterator[Sequence[Row]]:
        async for rows in self._log.rows(after=after):
            yield [self._opened(row)[0] for row in rows]

    async def append(self, rows: Sequence[Row]) -> None:
        await self._log.append([self._sealed(row) for row in rows])

    def change(self, sealer: Sealer) -> None:
        """From now on values are sealed by `sealer`; those of the one before can be read until `settle`."""
        self._sealer = _Either(sealer, self._sealer)

    def settle(self, sealer: Sealer) -> None:
        """Every row has been resealed: the sealer before is forgotten."""
        self._sealer = sealer
        self.is_stale = False

    async def reseal(self, after: int) -> tuple[int, int] | None:
        """Rewrite the values of one piece of rows that another sealer made: (the last revision of the piece, how many
        were rewritten), None when there are no more rows."""
        async for rows in self._log.rows(after=after):
            fresh = []
            for row in rows:
                opened, is_stale = self._opened(row)
                if is_stale and opened.value is not None:
                    fresh.append((row.revision, self._sealer.seal(row.key, opened.value)))
            if fresh:
                await self._log.rewrite(fresh)
            return rows[-1].revision, len(fresh)
        return None

    def _sealed(self, row: Row) -> Row:
        if row.value is None:
            return row
        sealed = self._sealer.seal(row.key, row.value)
        return row if sealed is row.value else row._replace(value=sealed)

    def _opened(self, row: Row) -> tuple[Row, bool]:
        if row.value is None:
            return row, False
        try:
            value, is_stale = self._sealer.unseal(row.key, row.value)
        except SealError as error:
            raise DatastoreError(
                f"{row.key} cannot be read: {error}: "
                "give the key that it was stored with to --encryption-provider-config"
            ) from None
        self.is_stale = self.is_stale or is_stale
        return (row if value is row.value else row._replace(value=value)), is_stale
