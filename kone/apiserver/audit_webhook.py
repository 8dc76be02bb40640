"""Audit events sent to a webhook, some hundred at a time: who asks the API does not wait for it.

Events wait in memory until there are enough for one POST, or long enough. A webhook that does not answer is asked
again; then, and where more come than can wait, events are lost, and the log says how many. Source: k8s.io/apiserver,
plugin/pkg/audit/{webhook,buffered}.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

import orjson

from kone.aio.clock import Clock
from kone.aio.tasks import TaskGroup
from kone.apimachinery.objects import Object
from kone.apiserver.audit import Sink

log = logging.getLogger(__name__)

BUFFERED: Final = 10_000
BATCH: Final = 400
MAX_WAIT_S: Final = 30.0
BACKOFF_S: Final = (10.0, 15.0, 22.5, 33.75)  # between five tries (--audit-webhook-initial-backoff)
LAST_S: Final = 5.0  # for what is left when the server stops

Send = Callable[[Object], Awaitable[Any]]
"""POSTs an EventList. Raises ValueError where it is not taken."""


class AuditWebhook:
    """A Sink of the audit log."""

    def __init__(self, send: Send, clock: Clock, *, batch: int = BATCH, max_wait_s: float = MAX_WAIT_S) -> None:
        self._send, self._clock = send, clock
        self._batch, self._max_wait_s = batch, max_wait_s
        self._events: deque[bytes] = deque()
        self._enough = asyncio.Event()
        self._lost = 0
        self._tasks = TaskGroup("audit-webhook")

    def start(self) -> None:
        self._tasks.guard(self._work, name="audit-webhook")

    def write(self, line: bytes) -> None:
        """Send the event some time. Never waits."""
        if len(self._events) >= BUFFERED:
            self._lost += 1
            return
        self._events.append(line)
        if len(self._events) >= self._batch:
            self._enough.set()

    def close(self) -> None:
        """`stop` has sent what could be sent."""

    async def stop(self) -> None:
        """Send what is left, once, in LAST_S at the most."""
        await self._tasks.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_S):
                while self._events:
                    await self._post(self._taken(), ())
        if self._events:
            log.error("audit webhook: events are lost: %d", len(self._events))

    async def _work(self) -> None:
        while True:
            await self._ripe()
            if self._events:
                await self._post(self._taken(), BACKOFF_S)
            if self._lost:
                lost, self._lost = self._lost, 0
                log.error("audit webhook: more events came than can wait, and are lost: %d", lost)

    async def _ripe(self) -> None:
        """Until there is a batch, or the time for a smaller one is over."""
        if len(self._events) < self._batch:
            self._enough.clear()
            full = asyncio.create_task(self._enough.wait(), name="a batch of audit events")
            late = asyncio.create_task(self._clock.sleep(self._max_wait_s), name="patience of audit events")
            try:
                await asyncio.wait((full, late), return_when=asyncio.FIRST_COMPLETED)
            finally:
                full.cancel()
                late.cancel()

    def _taken(self) -> list[bytes]:
        return [self._events.popleft() for _ in range(min(self._batch, len(self._events)))]

    async def _post(self, events: list[bytes], waits_s: tuple[float, ...]) -> None:
        items = [orjson.Fragment(event) for event in events]
        body = {"kind": "EventList", "apiVersion": "audit.k8s.io/v1", "metadata": {}, "items": items}
        for wait_s in (*waits_s, None):
            try:
                await self._send(body)
                return
            except ValueError as error:
                if wait_s is None:
                    log.error("audit webhook: events are lost: %d: %s", len(events), error)
                    return
                await self._clock.sleep(wait_s)


class Sinks:
    """Several sinks as one."""

    def __init__(self, *sinks: Sink) -> None:
        self._sinks = sinks

    def write(self, line: bytes) -> None:
        for sink in self._sinks:
            sink.write(line)

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()
