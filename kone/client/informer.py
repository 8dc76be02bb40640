"""An informer over HTTPS: list once, then follow the watch for ever, from where it broke off.

A watch that ends is taken up again at the last revision seen; one whose revision is too old (410) is replaced by a new
list, whose differences are told as events. So handlers see every object's newest state, in order, and nothing twice.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from kone.aio.clock import Clock
from kone.apimachinery.errors import StatusError
from kone.apimachinery.objects import Object, resource_version_of
from kone.client.client import Objects
from kone.client.view import View

log = logging.getLogger(__name__)

BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.8, 30.0  # client-go reflector
WATCH_MIN_S = 1.0  # a watch that ends sooner is not taken up again at once
OWN_WRITE_S = 5.0  # how long a writer waits at most to see its own write


class Source(Protocol):
    """Where the objects come from."""

    async def list(self) -> tuple[Objects, str]:
        """(all objects, the revision that they are of). Raises StatusError, OSError."""

    def watch(self, after: str) -> AsyncIterator[tuple[str, Object]]:
        """Events (type, object) after the revision, until the server ends it. Raises StatusError, OSError."""


class WatchedView(View):
    """A View that `run` feeds from a source."""

    def __init__(self, name: str, source: Source, clock: Clock) -> None:
        super().__init__(name)
        self._source, self._clock = source, clock
        self._revision = ""
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    async def run(self) -> None:
        """Feed the view until cancelled. What fails is logged and tried again after 0.8 s, doubling to 30 s."""
        delay_s = BACKOFF_FIRST_S
        while True:
            started = self._clock.monotonic()
            try:
                if not self._revision:
                    objects, revision = await self._source.list()
                    self.replace(objects)
                    self._advance(revision)
                async for kind, obj in self._source.watch(self._revision):
                    self._take(kind, obj)
                    delay_s = BACKOFF_FIRST_S
                if self._clock.monotonic() - started >= WATCH_MIN_S:
                    continue
                log.debug("watch ended at once: informer=%s again_in=%.1fs", self.name, delay_s)
            except StatusError as error:
                if error.code == 410:
                    log.debug("list again: informer=%s: %s", self.name, error)
                    self._revision = ""
                else:
                    log.warning("informer refused: informer=%s again_in=%.1fs error=%s", self.name, delay_s, error)
            except OSError as error:
                log.warning("informer cut off: informer=%s again_in=%.1fs error=%s", self.name, delay_s, error)
            await self._clock.sleep(delay_s * random.uniform(1.0, 1.5))
            delay_s = min(delay_s * 2, BACKOFF_MAX_S)

    async def see(self, shown: Callable[[], bool]) -> None:
        """Return when `shown()` holds, or after 5 s: a writer waits here until it can read what it wrote."""
        if not self.synced or shown():
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (shown, waiter)
        self._waiters.append(entry)
        try:
            await asyncio.wait_for(waiter, OWN_WRITE_S)
        except TimeoutError:
            log.warning("own write not seen: informer=%s after=%.0fs", self.name, OWN_WRITE_S)
        finally:
            if entry in self._waiters:
                self._waiters.remove(entry)

    @property
    def revision(self) -> int:
        """The newest revision that the view shows; 0 before the first list."""
        return int(self._revision or 0)

    def _take(self, kind: str, obj: Object) -> None:
        if kind == "ERROR":
            raise StatusError.from_status(obj)
        if kind in ("ADDED", "MODIFIED"):
            self.apply("MODIFIED", obj)
        elif kind == "DELETED":
            self.apply("DELETED", obj)
        self._advance(resource_version_of(obj))

    def _advance(self, revision: str) -> None:
        self._revision = revision or self._revision
        for shown, waiter in list(self._waiters):
            if not waiter.done() and shown():
                waiter.set_result(None)
