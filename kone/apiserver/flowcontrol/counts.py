"""What is counted of the requests of one schema at one level."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from typing import Final

DURATIONS_S: Final = (0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30)
SEATS: Final = (1, 2, 4, 10, 20, 50, 100)
LENGTHS: Final = (0, 10, 25, 50, 100, 250, 500, 1000)
WATCHERS: Final = (0, 1, 10, 100, 1000, 10000)


class Histogram:
    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        return sum(self.counts)

    def plus(self, value: float, times: int) -> Histogram:
        """With so many more of a value."""
        found = Histogram(self.bounds)
        found.counts, found.total = list(self.counts), self.total + value * times
        found.counts[bisect.bisect_left(self.bounds, value)] += times
        return found

    def lines(self, name: str, labels: str) -> Iterator[str]:
        count = 0
        for bound, more in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            count += more
            yield f'{name}_bucket{{{labels},le="{bound}"}} {count}'
        yield f"{name}_sum{{{labels}}} {self.total:.6f}"
        yield f"{name}_count{{{labels}}} {count}"


class Counts:
    """What cannot be told from the requests that are there now. `seats` has the requests of more than one seat."""

    __slots__ = (
        "inqueue",
        "inqueue_seats",
        "labels",
        "lengths",
        "regular",
        "rejected",
        "seats",
        "waited",
        "watch",
        "watchers",
    )

    def __init__(self, level: str, schema: str) -> None:
        self.labels = f'flow_schema="{schema}",priority_level="{level}"'
        self.inqueue = self.inqueue_seats = 0
        self.rejected: dict[str, int] = {}
        self.regular, self.watch = Histogram(DURATIONS_S), Histogram(DURATIONS_S)
        self.waited = {"true": Histogram(DURATIONS_S), "false": Histogram(DURATIONS_S)}
        self.seats, self.lengths, self.watchers = Histogram(SEATS), Histogram(LENGTHS), Histogram(WATCHERS)

    def reject(self, reason: str) -> None:
        self.rejected[reason] = self.rejected.get(reason, 0) + 1
