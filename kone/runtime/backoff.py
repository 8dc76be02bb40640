"""Back-off by key: how long to wait before what failed is tried again. Pure but for the Clock it is given."""

from __future__ import annotations

from dataclasses import dataclass

from kone.aio.clock import Clock

# Pod Lifecycle docs: "exponential back-off delay (10s, 20s, 40s, …), that is capped at 300 seconds"; reset after 10
# minutes
FIRST_S = 10.0
MAX_S = 300.0


@dataclass(slots=True)
class _Entry:
    delay_s: float
    last: float


class Backoff:
    """10 s doubling to 300 s; what went well for twice the maximum starts anew.

    Worked case: a container that ends at once, at 0 s: restarts at 0, 10, 30, 70, 150 s: five in 150 s.
    """

    def __init__(self, clock: Clock, first_s: float = FIRST_S, max_s: float = MAX_S) -> None:
        self._clock = clock
        self._first_s, self._max_s = first_s, max_s
        self._entries: dict[str, _Entry] = {}

    def remaining_s(self, key: str, since: float) -> float:
        """How long it is still too soon, for something that failed at `since` (Unix seconds); 0 or less: try."""
        entry = self._entries.get(key)
        if entry is None or self._is_over(entry, since):
            return 0.0
        return since + entry.delay_s - self._clock.now()

    def delay_s(self, key: str) -> float:
        """The delay in force, as messages tell it."""
        entry = self._entries.get(key)
        return entry.delay_s if entry else 0.0

    def next(self, key: str, since: float) -> None:
        """It is tried now: the next failure waits longer."""
        entry = self._entries.get(key)
        if entry is None or self._is_over(entry, since):
            self._entries[key] = _Entry(self._first_s, self._clock.now())
        else:
            entry.delay_s = min(entry.delay_s * 2, self._max_s)
            entry.last = self._clock.now()

    def forget(self, prefix: str) -> None:
        """Drop every key that starts so."""
        for key in [key for key in self._entries if key.startswith(prefix)]:
            del self._entries[key]

    def _is_over(self, entry: _Entry, since: float) -> bool:
        """Whether the last failure came so long after the last try that it counts as the first one."""
        return since - entry.last > 2 * self._max_s
