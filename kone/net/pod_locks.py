"""One call at a time for each pod: attaching and detaching the same pod never overlap, those of different pods do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class PodLocks:
    """A lock a pod, there as long as somebody holds it or waits for it."""

    def __init__(self) -> None:
        self._busy: dict[str, tuple[asyncio.Lock, int]] = {}

    @contextlib.asynccontextmanager
    async def alone(self, pod_uid: str) -> AsyncIterator[None]:
        lock, users = self._busy.get(pod_uid, (asyncio.Lock(), 0))
        self._busy[pod_uid] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._busy.pop(pod_uid)
            if users > 1:
                self._busy[pod_uid] = lock, users - 1
