"""How wide a request is: the seats that it takes while it is served, and for a moment after it.

Lists and watches with initial events are as wide as what they load; writes leave work behind for everybody who watches.
Source: k8s.io/apiserver, util/flowcontrol/request (with SizeBasedListCostEstimate, on by default).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from kone.apiserver.requests import Parameters, RequestInfo

BYTES_PER_SEAT: Final = 100_000
CACHED_MAX_BYTES: Final = 1_000_000  # what a list that comes from the cache holds in memory at a time
WATCHES_PER_SEAT: Final = 10
EVENT_S: Final = 0.005  # that a seat's worth of watchers takes
LIST_MAX_SEATS: Final = 100
WRITE_MAX_SEATS: Final = 10
WRITES: Final = frozenset(("create", "update", "patch", "delete"))


@dataclass(frozen=True, slots=True)
class Work:
    """Seats while it is served, and seats for `lingers_s` after it."""

    initial: int = 1
    final: int = 0
    lingers_s: float = 0.0
    seats: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seats", max(self.initial, self.final))


ONE_SEAT: Final = Work()


def of_read(info: RequestInfo, query: Parameters, count: int, average_bytes: float, max_seats: int) -> Work:
    """A list or watch of `count` objects. `max_seats` is the level's limit for one request, 0 where it has none."""
    said = {name: values[0] for name, values in query.items() if values}
    if info.verb == "watch":
        initial_events = said.get("sendInitialEvents", "").lower() in ("true", "1")
        if not initial_events and said.get("resourceVersion", "") not in ("", "0"):
            return ONE_SEAT
    cached = info.verb == "watch" or not _from_history(said)
    limit = int(said["limit"]) if said.get("limit", "").isdigit() else 0
    loaded = min(limit, count) if limit > 0 else count
    if info.name:
        loaded = 1
    elif not cached and (said.get("fieldSelector") or said.get("labelSelector")):
        loaded = max(loaded, count // 2)
    held = loaded * average_bytes
    if cached:
        held = min(held, CACHED_MAX_BYTES)
    most = min(max_seats, LIST_MAX_SEATS) if max_seats else LIST_MAX_SEATS
    seats = max(1, min(most, math.ceil(held / BYTES_PER_SEAT)))
    return Work(seats) if seats > 1 else ONE_SEAT


def _from_history(said: dict[str, str]) -> bool:
    """Whether a list is of an older state, which upstream's cache does not have."""
    match, version = said.get("resourceVersionMatch", ""), said.get("resourceVersion", "")
    if match:
        return match != "NotOlderThan"
    return bool(said.get("continue")) or (said.get("limit", "0") != "0" and version not in ("", "0"))


def of_write(watchers: int, max_seats: int) -> Work:
    """A write that so many watchers hear of. 25 watchers: 3 seats for 5 ms; of a level that allows 1: 1 for 15 ms."""
    if watchers < WATCHES_PER_SEAT:
        return ONE_SEAT
    wanted = math.ceil(watchers / WATCHES_PER_SEAT)
    most = min(max_seats, WRITE_MAX_SEATS) if max_seats else WRITE_MAX_SEATS
    final = min(wanted, most)
    return Work(1, final, wanted * EVENT_S / final)
