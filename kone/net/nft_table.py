"""One nftables table of kone's own: written by `nft -f -` as it changes, and made right when someone else changed it.

The kernel tells of each transaction with the process that made it (rules_watch.py); one that is not kone's has the
table listed and compared. So an idle node asks nothing, and a flush by someone else is mended within a second.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Sequence

from kone.aio.one_thread import OneThread
from kone.aio.tasks import TaskGroup
from kone.net.commands import CommandError, run
from kone.net.nft_ruleset import (
    Ruleset,
    listed_shape,
    script_anew,
    script_changed,
    script_removed,
    script_taking_over,
    shape_of,
)
from kone.net.rules_watch import Changes, keep_mended, watch_nft

log = logging.getLogger(__name__)

MEND_INTERVAL_S = 1.0


class NftError(Exception):
    """nft or the kernel refused; the text says what."""


class NftTable:
    """A table by family and name, e.g. "inet kone-policy". It is there while it shall hold anything."""

    def __init__(self, table: str) -> None:
        self._table = table
        self._wanted: Ruleset | None = None
        self._held: Ruleset | None = None  # what the kernel was last given; None: not known
        self._is_gone = False  # there was no table when last looked, and none was made since
        self._lock = asyncio.Lock()
        self._thread = OneThread("kone-nft")
        self._changes = Changes()
        self._tasks = TaskGroup("nft-table")
        self.mended = 0

    async def start(self) -> None:
        """Begin to watch; the table stays as an earlier run left it until the first `hold`."""
        self._tasks.guard(lambda: watch_nft(self._changes), name="nft-watch")
        self._tasks.guard(
            lambda: keep_mended(self._changes, self.verify, NftError, f"table {self._table}", MEND_INTERVAL_S),
            name="nft-mend",
        )

    async def stop(self) -> None:
        """Let go; the table stays."""
        await self._tasks.cancel()
        self._thread.end()

    async def hold(self, wanted: Ruleset | None) -> None:
        """Have the table hold this; None for no table. One transaction of what changed. Raises NftError."""
        async with self._lock:
            self._wanted = wanted
            await self._bring()

    async def change(self, wanted: Ruleset, take: Callable[[], str], undo: Callable[[], object]) -> None:
        """As `hold`, for a table too large to be compared: `wanted` is the caller's own, which `take` changes in place.

        `take` returns the script of what it changed; it is called when nobody else writes or compares. Where the
        kernel refuses, `undo` takes it back, and NftError is raised. The first time, and where the kernel is not what
        it was thought to be, the table is written anew; clients in dynamic sets are kept.
        """
        async with self._lock:
            script = take()
            try:
                await self._change(wanted, script)
            except BaseException:
                undo()
                raise

    async def _change(self, wanted: Ruleset, script: str) -> None:
        is_known = self._wanted is wanted and self._held is wanted
        self._wanted, self._is_gone = wanted, False
        self._held = None
        if is_known:
            try:
                if script:
                    await self._thread.call(lambda: self._run(["nft", "-f", "-"], script))
                self._held = wanted
                return
            except NftError as error:
                log.info("a change of table %s was refused, it is written anew: %s", self._table, error)
        await self._thread.call(lambda: self._take_over(wanted))
        self._held = wanted

    async def verify(self) -> bool:
        """Compare the kernel with what it shall be and mend it; whether it was right. Raises NftError."""
        async with self._lock:
            if self._wanted is None:
                return True
            if self._held is self._wanted and await self._thread.call(self._shape) == shape_of(self._wanted):
                return True
            self._held = None
            await self._bring()
            self.mended += 1
            log.warning("mended table %s, which someone else changed", self._table)
            return False

    async def remove(self) -> bool:
        """Take the table away, started or not; whether there was one. Raises NftError."""
        async with self._lock:
            self._wanted = self._held = None
            there = await self._thread.call(self._remove)
            self._is_gone = True
            return there

    async def _bring(self) -> None:
        wanted = self._wanted
        before, self._held = self._held, None
        if wanted is None:
            if not self._is_gone:
                await self._thread.call(self._remove)
                self._is_gone = True
            return
        self._is_gone = False
        if before is not None:
            script = script_changed(self._table, before, wanted)
            try:
                if script:
                    await self._thread.call(lambda: self._run(["nft", "-f", "-"], script))
                self._held = wanted
                return
            except NftError as error:  # the kernel is not what it was thought to be
                log.info("a change of table %s was refused, it is written anew: %s", self._table, error)
        await self._thread.call(lambda: self._take_over(wanted))
        self._held = wanted

    # In the thread

    def _remove(self) -> bool:
        there = self._is_there()
        if there:
            self._run(["nft", "-f", "-"], script_removed(self._table))
        return there

    def _take_over(self, wanted: Ruleset) -> None:
        """Write the table anew, with the clients of dynamic sets that are there."""
        if self._is_there():
            listing = json.loads(self._run(["nft", "-j", "-t", "list", "table", *self._table.split()]))
            try:
                self._run(["nft", "-f", "-"], script_taking_over(self._table, listing, wanted))
                return
            except NftError as error:
                log.info("table %s cannot be taken over, it is replaced: %s", self._table, error)
        self._run(["nft", "-f", "-"], script_anew(self._table, wanted))

    def _is_there(self) -> bool:
        family, name = self._table.split()
        tables = json.loads(self._run(["nft", "-j", "list", "tables", family]))
        return any(item.get("table", {}).get("name") == name for item in tables["nftables"])

    def _shape(self) -> dict[str, int] | None:
        if not self._is_there():
            return None
        return listed_shape(json.loads(self._run(["nft", "-j", "list", "table", *self._table.split()])))

    def _run(self, command: Sequence[str], text: str | None = None) -> str:
        try:
            return run(command, text, self._changes.own, "nftables")
        except CommandError as error:
            raise NftError(str(error)) from error
