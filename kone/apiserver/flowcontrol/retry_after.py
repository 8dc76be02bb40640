"""What a refused request is told of when to come again: longer the more are refused, shorter when it gets better.

Source: k8s.io/apiserver, util/flowcontrol/dropped_requests_tracker.go.
"""

from __future__ import annotations

from collections import deque
from typing import Final

MAX_S: Final = 32


class RetryAfter:
    """Of one priority level. At least three refused requests for each second of it double it, less than one a second
    takes a second off."""

    def __init__(self) -> None:
        self.seconds = 1
        self._raised_at = 0
        self._history: deque[tuple[int, int]] = deque()  # (Unix second, requests refused in it)
        self._second = 0
        self._count = 0

    def refused(self, second: int) -> None:
        """A request was refused in this second of the Unix epoch."""
        if second == self._second:
            self._count += 1
            return
        self._history.append((self._second, self._count))
        kept_s = min(2 * self.seconds, MAX_S)
        while self._history and self._second - self._history[0][0] > kept_s:
            self._history.popleft()
        self._second, self._count = second, 1
        self._review(second)

    def _review(self, second: int) -> None:
        refused = sum(count for at, count in self._history if second - self.seconds <= at < second)
        if second - self._raised_at >= self.seconds and refused >= 3 * self.seconds:
            self.seconds = min(2 * self.seconds, MAX_S)
            self._raised_at = second
        elif refused < self.seconds and self.seconds > 1:
            self.seconds -= 1
