"""What is counted of the requests of one schema at one level."""

from __future__ import annotations

from typing import Final

from kone.apimachinery.histograms import Histogram

DURATIONS_S: Final = (0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30)
SEATS: Final = (1, 2, 4, 10, 20, 50, 100)
LENGTHS: Final = (0, 10, 25, 50, 100, 250, 500, 1000)
WATCHERS: Final = (0, 1, 10, 100, 1000, 10000)


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
