"""The metrics of flow control in Prometheus' text format, under upstream's names (apiserver_flowcontrol_*)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, cast

from kone.apimachinery.histograms import Histogram
from kone.apiserver.flowcontrol.counts import Counts
from kone.apiserver.flowcontrol.levels import Flow, PriorityLevel

PREFIX: Final = "apiserver_flowcontrol_"


@dataclass(frozen=True, slots=True)
class _Row:
    """Of one schema at one level: what was counted, and the requests that are served now."""

    counts: Counts
    executing: int
    executing_seats: int

    @property
    def labels(self) -> str:
        return self.counts.labels

    @property
    def dispatched(self) -> int:
        return self.counts.regular.count + self.counts.watch.count + self.executing

    @property
    def seats(self) -> Histogram:
        came = self.dispatched + self.counts.inqueue + sum(self.counts.rejected.values())
        return self.counts.seats.plus(1, came - self.counts.seats.count)


_OfRow = Callable[[_Row], Iterable[str]]


def exposition(levels: Iterable[PriorityLevel], fair_fraction: float) -> Iterator[str]:
    """Prometheus' text."""
    levels = sorted(levels, key=lambda level: level.name)
    rows = [row for level in levels for row in _rows(level)]
    for name, kind, text, of in _OF_ROWS:
        yield from _head(name, kind, text)
        for row in rows:
            yield from of(row)
    for name, text, value in _OF_LEVELS:
        yield from _head(name, "gauge", text)
        for level in levels:
            yield f'{PREFIX}{name}{{priority_level="{level.name}"}} {value(level):.10g}'
    yield from _head("seat_fair_frac", "gauge", "Part of its target that each level gets.")
    yield f"{PREFIX}seat_fair_frac {fair_fraction:.10g}"


def _rows(level: PriorityLevel) -> Iterator[_Row]:
    for _, counts in sorted(level.counts.items()):
        served = [ticket for ticket in level.queues.served_now if cast(Flow, ticket.flow).counts is counts]
        lingering = [ticket for ticket in level.queues.lingering if cast(Flow, ticket.flow).counts is counts]
        yield _Row(counts, len(served), sum(ticket.work.seats for ticket in (*served, *lingering)))


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {PREFIX}{name} {text}"
    yield f"# TYPE {PREFIX}{name} {kind}"


def _value(name: str, value: Callable[[_Row], int]) -> _OfRow:
    return lambda row: (f"{PREFIX}{name}{{{row.labels}}} {value(row)}",)


def _histogram(name: str, value: Callable[[_Row], Histogram]) -> _OfRow:
    return lambda row: value(row).lines(PREFIX + name, row.labels)


def _rejected(row: _Row) -> Iterator[str]:
    for reason, count in sorted(row.counts.rejected.items()):
        yield f'{PREFIX}rejected_requests_total{{{row.labels},reason="{reason}"}} {count}'


def _executions(row: _Row) -> Iterator[str]:
    for kind, found in (("regular", row.counts.regular), ("watch", row.counts.watch)):
        yield from found.lines(f"{PREFIX}request_execution_seconds", f'{row.labels},type="{kind}"')


def _waits(row: _Row) -> Iterator[str]:
    for executed, found in row.counts.waited.items():
        yield from found.lines(f"{PREFIX}request_wait_duration_seconds", f'{row.labels},execute="{executed}"')


_OF_ROWS: Final[Sequence[tuple[str, str, str, _OfRow]]] = (
    ("rejected_requests_total", "counter", "Requests refused.", _rejected),
    (
        "dispatched_requests_total",
        "counter",
        "Requests served.",
        _value("dispatched_requests_total", lambda row: row.dispatched),
    ),
    (
        "current_inqueue_requests",
        "gauge",
        "Requests that wait.",
        _value("current_inqueue_requests", lambda row: row.counts.inqueue),
    ),
    (
        "current_inqueue_seats",
        "gauge",
        "Seats that waiting requests ask for.",
        _value("current_inqueue_seats", lambda row: row.counts.inqueue_seats),
    ),
    (
        "current_executing_requests",
        "gauge",
        "Requests being served, watches until they have begun.",
        _value("current_executing_requests", lambda row: row.executing),
    ),
    (
        "current_executing_seats",
        "gauge",
        "Seats of requests being served.",
        _value("current_executing_seats", lambda row: row.executing_seats),
    ),
    ("request_execution_seconds", "histogram", "How long serving took, of watches the beginning.", _executions),
    ("request_wait_duration_seconds", "histogram", "How long requests waited in their queues.", _waits),
    (
        "work_estimated_seats",
        "histogram",
        "Seats that requests were thought to need.",
        _histogram("work_estimated_seats", lambda row: row.seats),
    ),
    (
        "request_queue_length_after_enqueue",
        "histogram",
        "Requests in the queue that one came to, with it.",
        _histogram("request_queue_length_after_enqueue", lambda row: row.counts.lengths),
    ),
    (
        "watch_count_samples",
        "histogram",
        "Watchers of what was written.",
        _histogram("watch_count_samples", lambda row: row.counts.watchers),
    ),
)
_OF_LEVELS: Final[Sequence[tuple[str, str, Callable[[PriorityLevel], float]]]] = (
    ("nominal_limit_seats", "Seats that the level's share comes to.", lambda level: level.share.limits.nominal),
    ("lower_limit_seats", "Seats that the level keeps.", lambda level: level.share.limits.lower),
    ("upper_limit_seats", "Seats that the level has at the most.", lambda level: level.share.limits.upper),
    ("current_limit_seats", "Seats that the level has now.", lambda level: level.share.current),
    ("demand_seats_high_watermark", "Most seats asked for in the last period.", lambda level: level.share.seen.highest),
    ("demand_seats_average", "Seats asked for on average in the last period.", lambda level: level.share.seen.average),
    ("demand_seats_stdev", "Their standard deviation.", lambda level: level.share.seen.deviation),
    ("demand_seats_smoothed", "Seats asked for, smoothed.", lambda level: level.share.seen.smoothed),
    ("target_seats", "Seats that the level should have.", lambda level: level.share.seen.target),
    ("current_r", "Seat-seconds that each queue was due.", lambda level: level.queues.r),
    (
        "request_dispatch_no_accommodation_total",
        "How often the next request found too few seats.",
        lambda level: level.queues.not_accommodated,
    ),
)
