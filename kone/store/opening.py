"""Where a store is opened: the one module that knows both the contract and what keeps it."""

from __future__ import annotations

import sys

from kone.aio.clock import Clock, SystemClock
from kone.store.log_store import LogStore
from kone.store.sql import open_log
from kone.store.store import Retention, Sealer, Store


async def open_store(
    url: str,
    *,
    retention: Retention | None = None,
    clock: Clock | None = None,
    protect: bool | None = None,
    sealer: Sealer | None = None,
) -> Store:
    """Open "sqlite:///relative/path", "sqlite:////absolute/path", "memory://" or "postgresql://user@host/database".

    `sealer` encrypts what is stored; what was stored otherwise is rewritten before this returns. With `protect` (the
    default under pytest) the objects handed out raise TypeError when somebody changes them.
    Raises DatastoreLocked, DatastoreTooNew, DatastoreUnwritable, DatastoreError: one line that says what to do.
    """
    if protect is None:
        protect = "pytest" in sys.modules
    log = await open_log(url)
    try:
        return await LogStore.load(
            log, retention or Retention(), clock or SystemClock(), protect=protect, sealer=sealer
        )
    except BaseException:
        await log.close()
        raise
