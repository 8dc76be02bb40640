"""Histograms as Prometheus has them: how many values lie within each bound, and what all of them come to."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence


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
