"""Waiting, between the decision and the binding, for what others must do first: no polling, and not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kone.aio.clock import Clock


class Awaiting:
    """`changed` is to be called whenever something may have happened that somebody waits for."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiters: set[asyncio.Event] = set()

    def changed(self) -> None:
        for waiter in self._waiters:
            waiter.set()

    async def until(self, is_done: Callable[[], bool], timeout_s: float) -> bool:
        """Look now and after each change; False when the time is over. What `is_done` raises ends the waiting."""
        waiter = asyncio.Event()
        self._waiters.add(waiter)
        timeout = asyncio.ensure_future(self._clock.sleep(timeout_s))
        try:
            while not is_done():
                waiter.clear()
                change = asyncio.ensure_future(waiter.wait())
                try:
                    await asyncio.wait((change, timeout), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    change.cancel()
                if timeout.done():
                    return False
        finally:
            timeout.cancel()
            self._waiters.discard(waiter)
        return True
