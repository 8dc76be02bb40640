"""A queue of keys for reconcile loops: a key waits once, one worker at a time has it, and it comes back if asked to.

The promises are those of client-go's work queue: a key added while it waits is one piece of work; a key added while it
is worked on is worked on again afterwards; a key that failed comes back later and later, others do not wait for it.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

from kone.aio.clock import Clock

K = TypeVar("K", bound=Hashable)

BACKOFF_FIRST_S = 0.005  # client-go DefaultTypedControllerRateLimiter: 5 ms doubling to 1000 s
BACKOFF_MAX_S = 1000.0


class WorkQueue(Generic[K]):
    """Keys to work on. One task sleeps until the earliest delayed key is due; with nothing delayed, nothing runs."""

    def __init__(
        self, clock: Clock, *, name: str = "", first_s: float = BACKOFF_FIRST_S, max_s: float = BACKOFF_MAX_S
    ) -> None:
        self.name = name
        self._clock = clock
        self._first_s, self._max_s = first_s, max_s
        self._ready: deque[K] = deque()
        self._waiting: set[K] = set()  # in _ready, or to be put there when its worker is done
        self._working: set[K] = set()
        self._getters: deque[asyncio.Future[None]] = deque()
        self._due: dict[K, float] = {}
        self._timeline: list[tuple[float, int, K]] = []
        self._order = itertools.count()
        self._timer: asyncio.Task[None] | None = None
        self._timer_at = float("inf")
        self._failures: dict[K, int] = {}

    def __len__(self) -> int:
        """Keys that could be worked on now."""
        return len(self._ready)

    @property
    def idle(self) -> bool:
        """Nothing to do now and nothing being done; delayed keys do not count."""
        return not self._waiting and not self._working

    def add(self, key: K) -> None:
        """Work on the key as soon as a worker is free."""
        if key in self._waiting:
            return
        self._waiting.add(key)
        if key not in self._working:
            self._ready.append(key)
            self._wake()

    def add_after(self, key: K, delay_s: float) -> None:
        """Work on the key in `delay_s`; of several delays for one key the earliest counts."""
        if delay_s <= 0:
            self.add(key)
            return
        at = self._clock.monotonic() + delay_s
        if self._due.get(key, float("inf")) <= at:
            return
        self._due[key] = at
        heapq.heappush(self._timeline, (at, next(self._order), key))
        if at < self._timer_at:
            self._start_timer(at)

    def add_backing_off(self, key: K) -> float:
        """The key failed: work on it after its back-off, which is returned in seconds and doubles until `forget`."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay_s = min(self._first_s * 2.0 ** min(failures, 60), self._max_s)
        self.add_after(key, delay_s)
        return delay_s

    def forget(self, key: K) -> None:
        """The key succeeded: its next failure starts at the shortest back-off."""
        self._failures.pop(key, None)

    def failures(self, key: K) -> int:
        return self._failures.get(key, 0)

    async def get(self) -> K:
        """The next key; say `done` when it has been worked on."""
        while not self._ready:
            getter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._getters.append(getter)
            try:
                await getter
            except asyncio.CancelledError:
                if getter.done() and not getter.cancelled() and self._ready:
                    self._wake()  # this wake-up was for a key that another worker must now take
                raise
        key = self._ready.popleft()
        self._waiting.discard(key)
        self._working.add(key)
        return key

    def done(self, key: K) -> None:
        """The worker is finished with the key; if it was added meanwhile, it is ready again."""
        self._working.discard(key)
        if key in self._waiting:
            self._ready.append(key)
            self._wake()

    def close(self) -> None:
        """Forget what is delayed and stop the timer."""
        self._due.clear()
        self._timeline.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = None, float("inf")

    def _wake(self) -> None:
        while self._getters:
            getter = self._getters.popleft()
            if not getter.done():
                getter.set_result(None)
                return

    def _start_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = asyncio.create_task(self._sleep_until(at), name=f"queue {self.name}")
        self._timer.add_done_callback(self._revive)

    def _revive(self, timer: asyncio.Task[None]) -> None:
        """Somebody else has cancelled the timer: what is delayed must come back all the same."""
        if timer.cancelled() and timer is self._timer:
            self._start_timer(self._timer_at)

    async def _sleep_until(self, at: float) -> None:
        await self._clock.sleep(at - self._clock.monotonic())
        now = self._clock.monotonic()
        self._timer, self._timer_at = None, float("inf")
        while self._timeline and (self._timeline[0][0] <= now or self._due.get(self._timeline[0][2]) is None):
            due, _, key = heapq.heappop(self._timeline)
            if self._due.get(key) == due:
                del self._due[key]
                self.add(key)
        if self._timeline:
            self._start_timer(self._timeline[0][0])
