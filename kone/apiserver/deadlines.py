"""How long a request may take: `--request-timeout`, or less where it says so (`?timeout=5s`). Streams may last.

Who is over its time is cancelled and answered by 504. Time is looked at once a second, so that a request pays no
timer; one that sets its own limit does. A write that has been handed to the store is not torn: it is done or it is
not, and the cancellation comes after (store.commit). Source: k8s.io/apiserver, filters request_deadline.go and
timeout.go.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any, Final

from kone.aio.clock import Clock
from kone.apimachinery.errors import StatusError, bad_request
from kone.apimachinery.timestamps import parse_go_duration
from kone.apiserver.connections import Request
from kone.apiserver.requests import Parameters

LOOK_EVERY_S: Final = 1.0
TEXT: Final = "Timeout: request did not complete within the allotted timeout"
REQUEST_TIMEOUT_S: Final = 60.0


class Deadlines:
    """The requests that are being served and may not last. `timer` is what `began` was read from."""

    def __init__(self, limit_s: float, clock: Clock, timer: Callable[[], float] = time.perf_counter) -> None:
        self.limit_s = limit_s
        self._clock, self._timer = clock, timer
        self._serving: dict[asyncio.Task[Any], Request] = {}

    def __len__(self) -> int:
        return len(self._serving)

    def begin(self, request: Request, query: Parameters, began: float) -> asyncio.Task[Any]:
        """The current task serves the request since `began`. Raises StatusError 400 for a time that is none."""
        limit_s = self.limit_s
        if query and (said := query.get("timeout")) and said[0]:
            asked_s = _parsed(said[0])
            if 0 < asked_s < limit_s:
                limit_s = asked_s
        task = asyncio.current_task()
        assert task is not None, "requests are served by tasks"
        request.deadline = began + limit_s
        self._serving[task] = request
        if limit_s < self.limit_s:
            asyncio.get_running_loop().call_later(limit_s, self._end, task, request)
        return task

    def over(self, task: asyncio.Task[Any]) -> None:
        """The request has been served."""
        del self._serving[task]

    async def watch(self) -> None:
        """End what is over its time, for ever."""
        while True:
            await self._clock.sleep(LOOK_EVERY_S)
            now = self._timer()
            for task, request in [(t, r) for t, r in self._serving.items() if r.deadline <= now]:
                self._end(task, request)

    def _end(self, task: asyncio.Task[Any], request: Request) -> None:
        if self._serving.get(task) is request and not request.timed_out:
            request.timed_out = True
            task.cancel()


def _parsed(text: str) -> float:
    try:
        return parse_go_duration(text)
    except ValueError as error:
        raise bad_request(f"invalid timeout specified in the request URL - {error}") from None


async def calmed(task: asyncio.Task[Any]) -> None:
    """Take back the current task's cancellation, also one that is yet to be raised."""
    task.uncancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0)


def timed_out() -> StatusError:
    return StatusError(504, "Timeout", TEXT, details={})
