"""How far history is forgotten, and in which steps: a step holds the writer for 20 ms at the most, then writes go
first.

Worked case: history keeps 3 events, events 5, 6, 7, 8, 9 are known: the new floor is 6, so that 7, 8, 9 stay. Event 5
made the key "a", event 6 changed it: row 5 is garbage of event 6 and goes; row 6 stays, being the state of "a" as of
the floor.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from kone.store.store import Retention

STEP_S = 0.020  # the longest that a step may hold the writer; sizes aim at half of it
FIRST_STEP = 64
MAX_STEP = 4096


@dataclass(slots=True)
class Window:
    """The events of history by weight and age; says how far it must be cut. Times are the clock's monotonic seconds."""

    retention: Retention
    events: int = 0
    bytes: int = 0
    _batches: deque[tuple[int, int, int, float]] = field(default_factory=deque)  # last revision, events, bytes, time

    def add(self, last_revision: int, events: int, size_bytes: int, now_s: float) -> None:
        """Note a batch of events that ends with `last_revision`."""
        self.events += events
        self.bytes += size_bytes
        self._batches.append((last_revision, events, size_bytes, now_s))

    @property
    def overfull(self) -> bool:
        """A quarter over one of its bounds: time to cut before the next regular look."""
        return self.events > self.retention.max_events * 1.25 or self.bytes > self.retention.max_bytes * 1.25

    def cut(self, now_s: float) -> int:
        """Drop whole batches until every bound is met; the last revision that was dropped, 0 if none was."""
        floor = 0
        oldest_s = now_s - self.retention.max_age_s
        while self._batches and (
            self.events > self.retention.max_events
            or self.bytes > self.retention.max_bytes
            or self._batches[0][3] < oldest_s
        ):
            floor, events, size_bytes, _ = self._batches.popleft()
            self.events -= events
            self.bytes -= size_bytes
        return floor


@dataclass(slots=True)
class Garbage:
    """Rows that are needed only while history goes back before the event that replaced them, in the order of these
    events."""

    _rows: deque[tuple[int, int]] = field(default_factory=deque)  # the event's revision, the row that it made useless

    def add(self, event: int, row: int) -> None:
        self._rows.append((event, row))

    def ready(self, floor: int) -> bool:
        """Are there rows that history from `floor` on does not need?"""
        return bool(self._rows) and self._rows[0][0] <= floor

    def take(self, floor: int, limit: int) -> tuple[list[int], int]:
        """At most `limit` such rows, and the floor that holds once they are gone. What is taken must be forgotten."""
        taken: list[int] = []
        last = 0
        while self.ready(floor) and len(taken) < limit:
            last, row = self._rows.popleft()
            taken.append(row)
        return taken, last if self.ready(floor) else floor

    def put_back(self, rows: list[int], floor: int) -> None:
        """Return what could not be forgotten, to be tried again."""
        self._rows.extendleft((floor, row) for row in reversed(rows))


@dataclass(slots=True)
class Pace:
    """How much a step may do, learnt from how long the last one held the writer."""

    size: int = FIRST_STEP

    def took(self, seconds: float) -> None:
        if seconds > STEP_S / 2:
            self.size = max(self.size // 2, 1)
        elif seconds < STEP_S / 4:
            self.size = min(self.size * 2, MAX_STEP)
