"""One writer, many readers: a ring of items that readers follow by position. A slow reader is dropped, never blocks.

Publishing costs the same for one reader and for a thousand, but for one wake-up each: there is no queue per reader, and
a reader that was away takes everything it missed as one list.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Ring(Generic[T]):
    """An append-only sequence whose oldest items are let go by `trim`. Positions count from 0 and never change."""

    def __init__(self) -> None:
        self._items: list[T] = []
        self._first = 0
        self._waiting: dict[asyncio.Future[None], None] = {}  # a set that keeps the order
        self.closed = False

    def __len__(self) -> int:
        return len(self._items)

    @property
    def first(self) -> int:
        """The position of the oldest item that is still here."""
        return self._first

    @property
    def end(self) -> int:
        """The position that the next item will have."""
        return self._first + len(self._items)

    def __getitem__(self, position: int) -> T:
        """The item at an absolute position. Raises IndexError when it is not here (any more)."""
        if position < self._first:
            raise IndexError(position)
        return self._items[position - self._first]

    def publish(self, items: Sequence[T]) -> None:
        """Append, and wake who waits, once."""
        self._items.extend(items)
        self._wake()

    def trim(self, position: int) -> list[T]:
        """Let go of the items before `position`; returns them."""
        count = min(max(position - self._first, 0), len(self._items))
        gone = self._items[:count]
        del self._items[:count]
        self._first += count
        return gone

    def since(self, position: int, limit: int | None = None) -> list[T]:
        """The items from `position` (not before `first`) on, at most `limit`."""
        start = max(position - self._first, 0)
        return self._items[start:] if limit is None else self._items[start : start + limit]

    def close(self) -> None:
        """No more items come: readers end after the last one."""
        self.closed = True
        self._wake()

    def bisect(self, after: Callable[[T], bool]) -> int:
        """The position of the first item for which `after` holds; it must hold for every item behind it too."""
        low, high = 0, len(self._items)
        while low < high:
            middle = (low + high) // 2
            if after(self._items[middle]):
                high = middle
            else:
                low = middle + 1
        return self._first + low

    def wait(self) -> asyncio.Future[None]:
        """A future that the next publish or close fulfils. Who gives up waiting says so by `leave`."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = None
        return waiter

    def leave(self, waiter: asyncio.Future[None]) -> None:
        """Forget a future of `wait`."""
        self._waiting.pop(waiter, None)

    def _wake(self) -> None:
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)


class Reader(Generic[T]):
    """One reader's place in a ring. It is `dropped` once it lags more than `max_lag` items or what it wants has been
    let go."""

    def __init__(self, ring: Ring[T], position: int, *, max_lag: int) -> None:
        self._ring = ring
        self._position = position
        self._max_lag = max_lag
        self._waiter: asyncio.Future[None] | None = None
        self.dropped = False
        self.closed = False

    @property
    def lag(self) -> int:
        """How many items wait for this reader."""
        return self._ring.end - self._position

    def get_nowait(self, limit: int | None = None) -> list[T]:
        """What has come since the last call, at most `limit`; [] when there is nothing or the reader has ended."""
        ring = self._ring
        lag = ring.end - self._position
        if not lag or self.ended:
            return []
        if self._position < ring.first or lag > self._max_lag:
            self.dropped = True
            return []
        items = ring.since(self._position, limit)
        self._position += len(items)
        return items

    @property
    def ended(self) -> bool:
        """Nothing will come any more: dropped, closed, or the ring was closed and is read to its end."""
        return self.dropped or self.closed or (self._ring.closed and self._position >= self._ring.end)

    async def get(self, limit: int | None = None, *, timeout_s: float | None = None) -> list[T]:
        """As get_nowait, but waits for the first item, at most `timeout_s`; [] means that time is up or the reader has
        ended."""
        if items := self.get_nowait(limit):
            return items
        if self.ended:
            return []
        waiter = self._waiter = self._ring.wait()
        timer = None
        if timeout_s is not None:
            timer = asyncio.get_running_loop().call_later(timeout_s, _finish, waiter)
        try:
            await waiter
        finally:
            if timer is not None:
                timer.cancel()
            self._ring.leave(waiter)
        return self.get_nowait(limit)

    def close(self) -> None:
        """Stop reading; a `get` that is waiting returns []."""
        self.closed = True
        if self._waiter is not None:
            _finish(self._waiter)


def _finish(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
