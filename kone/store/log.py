"""What the store needs of a database: an append-only log of rows. The row's id is its revision; sql.py keeps it in SQL.

A row replaces the row named by `previous`; the pair (key, previous) is unique, so that of two writers that saw the same
state only one can go on. Rows that later rows replaced are history, and are forgotten in steps once they leave its
window.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from kone.store.store import StoreError

PUT = 0
DELETE = 1
PUT_VOLATILE = 2  # the newest row of a key whose later states may be in memory only


class Row(NamedTuple):
    """One change as it is stored. `previous` is the revision of the key's row before, 0 where there is none."""

    revision: int
    key: str
    previous: int
    kind: int
    value: bytes | None  # the object's JSON; None for DELETE


@dataclass(frozen=True, slots=True)
class Marks:
    """The revisions that a log remembers beside its rows."""

    floor: int  # history at or below it has been forgotten
    reserved: int  # revisions up to it may have been given to volatile writes
    clean: bool  # the last process stored its volatile states when it closed


class LogConflict(StoreError):
    """Another writer has put a row with this revision, or replaced the same row. Nothing was appended."""


class Log(Protocol):
    """Rows and marks on durable storage. Used by one task at a time."""

    async def marks(self) -> Marks: ...

    def rows(self, *, after: int) -> AsyncIterator[Sequence[Row]]:
        """The rows with revision > after, in order, in pieces. Raises DatastoreFailed."""

    async def append(self, rows: Sequence[Row]) -> None:
        """Write all rows or none; durable when it returns. Raises LogConflict, DatastoreFailed."""

    async def mark(self, *, reserved: int, clean: bool) -> None:
        """Remember, durably, how far revisions may have been given out. Raises DatastoreFailed."""

    async def forget(self, revisions: Sequence[int], *, floor: int) -> None:
        """Delete rows, and remember that history at or below `floor` is incomplete. Raises DatastoreFailed."""

    async def shrink(self, pages: int) -> bool:
        """Give some of the space that deleted rows left back to the file system; True when there is more to give."""

    async def rewrite(self, values: Sequence[tuple[int, bytes]]) -> None:
        """Give rows, named by their revisions, other values. Raises DatastoreFailed."""

    async def scrub(self) -> None:
        """Leave no trace of deleted and rewritten values in files that are this log's own."""

    async def close(self) -> None: ...
