"""A log in a list: it forgets nothing when its store dies, and fails when it is told to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from kone.store.log import LogConflict, Marks, Row
from kone.store.store import DatastoreFailed


class FakeLog:
    """Keeps `Log`'s contract. `fail_next` says how the next append fails: "before" or "after" the rows are stored."""

    def __init__(self) -> None:
        self.stored: dict[int, Row] = {}
        self.kept = Marks(floor=0, reserved=0, clean=True)
        self.transactions: list[int] = []  # the number of rows of each append
        self.fail_next = ""
        self.broken = False
        self.closed = False

    async def marks(self) -> Marks:
        return self.kept

    async def rows(self, *, after: int) -> AsyncIterator[Sequence[Row]]:
        self._check()
        found = sorted(row for revision, row in self.stored.items() if revision > after)
        if found:
            yield found

    async def append(self, rows: Sequence[Row]) -> None:
        self._check()
        if self.fail_next == "before":
            self.fail_next = ""
            raise DatastoreFailed("the disk is full")
        replaced = {(row.key, row.previous) for row in self.stored.values()}
        for row in rows:
            if row.revision in self.stored or (row.key, row.previous) in replaced:
                raise LogConflict(f"revision {row.revision} of {row.key}")
            replaced.add((row.key, row.previous))
        self.transactions.append(len(rows))
        self.stored.update((row.revision, row) for row in rows)
        if self.fail_next == "after":
            self.fail_next = ""
            raise DatastoreFailed("the answer was lost")

    async def mark(self, *, reserved: int, clean: bool) -> None:
        self._check()
        self.kept = replace(self.kept, reserved=reserved, clean=clean)

    async def forget(self, revisions: Sequence[int], *, floor: int) -> None:
        self._check()
        for revision in revisions:
            self.stored.pop(revision, None)
        self.kept = replace(self.kept, floor=floor)

    async def rewrite(self, values: Sequence[tuple[int, bytes]]) -> None:
        self._check()
        for revision, value in values:
            self.stored[revision] = self.stored[revision]._replace(value=value)

    async def scrub(self) -> None:
        self._check()

    async def shrink(self, pages: int) -> bool:
        return False

    async def close(self) -> None:
        self.closed = True

    def _check(self) -> None:
        if self.broken:
            raise DatastoreFailed("the disk is gone")
