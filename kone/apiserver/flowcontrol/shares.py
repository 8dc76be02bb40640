"""How many seats each priority level has: its share of the server's, and what it lends and borrows.

Source: k8s.io/apiserver, util/flowcontrol (apf_controller.go, conc_alloc.go) and KEP-1040.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

MIN_TARGET: Final = 0.001
SMOOTHING: Final = 0.977  # the half-life of demand is 5 minutes, in steps of 10 s
MAX_SEATS_SHARE: Final = 0.15  # of a level's nominal seats, for one request


@dataclass(frozen=True, slots=True)
class Limits:
    """Seats of a level: what its share comes to, what it keeps when it lends all it may, what it has at the most."""

    nominal: int
    lower: int
    upper: int

    @property
    def first(self) -> int:
        """What a new level begins with: half of what it may lend is lent."""
        return self.nominal - (self.nominal - self.lower) // 2


def limits(spec: Mapping[str, Any], shares: float, server_seats: int) -> Limits:
    """Of the level of this spec, where `shares` are those of all levels together."""
    part = spec.get("limited") or spec.get("exempt") or {}
    nominal = math.ceil(server_seats * shares_of(spec) / shares) if shares else 0
    lent = go_round(nominal * (part.get("lendablePercent") or 0) / 100)
    percent = part.get("borrowingLimitPercent")
    borrowed = server_seats if percent is None else go_round(nominal * percent / 100)
    return Limits(nominal, nominal - lent, nominal + borrowed)


def shares_of(spec: Mapping[str, Any]) -> int:
    if spec.get("type") == "Exempt":
        return (spec.get("exempt") or {}).get("nominalConcurrencyShares") or 0
    shares = (spec.get("limited") or {}).get("nominalConcurrencyShares")
    return 30 if shares is None else shares


def max_seats(nominal: int, hand_size: int) -> int:
    """What one request of a level with queues may occupy."""
    return max(1, min(math.ceil(nominal * MAX_SEATS_SHARE), nominal // hand_size))


class Demand:
    """Seats that a level could use, over time: highest, average and deviation since they were last taken."""

    __slots__ = ("_area", "_at", "_began", "_highest", "_squares", "_value")

    def __init__(self, now: float) -> None:
        self._at = self._began = now
        self._value = self._highest = 0
        self._area = self._squares = 0.0

    def set(self, value: int, now: float) -> None:
        lasted = now - self._at
        if lasted > 0.0:
            self._at = now
            if held := self._value:
                self._area += held * lasted
                self._squares += held * held * lasted
        self._value = value
        if value > self._highest:
            self._highest = value

    def take(self, now: float) -> tuple[int, float, float] | None:
        """(highest, average, deviation), and begin anew; None where no time has passed."""
        self.set(self._value, now)
        lasted, highest = now - self._began, self._highest
        area, squares = self._area, self._squares
        if lasted <= 0.0:
            return None
        self._began, self._highest, self._area, self._squares = now, self._value, 0.0, 0.0
        average = area / lasted
        return highest, average, math.sqrt(max(0.0, squares / lasted - average * average))


@dataclass(slots=True)
class DemandSeen:
    """What is known of a level's demand. `smoothed` falls slowly and rises at once."""

    highest: int = 0
    average: float = 0.0
    deviation: float = 0.0
    smoothed: float = 0.0
    target: float = 0.0

    def update(self, taken: tuple[int, float, float] | None) -> None:
        if taken is None:
            return
        self.highest, self.average, self.deviation = taken
        envelope = self.average + self.deviation
        self.smoothed = max(envelope, SMOOTHING * self.smoothed + (1 - SMOOTHING) * envelope)


@dataclass(frozen=True, slots=True)
class Claim:
    """What a level wants of the seats that are to give away: `target`, and what it must and may get."""

    target: float
    lower: float
    upper: float


def allocate(total: int, claims: Sequence[Claim]) -> tuple[list[float], float]:
    """(seats of each, the fraction of its target that each gets unless a bound of its own is nearer).

    Targets of 10 and 30 with bounds 0 to 100 for a total of 20: 5 and 15, a half of each. Bounds that add up to more
    or less than the total are kept all the same.
    """
    targets = [max(claim.target, MIN_TARGET) for claim in claims]

    def given(fraction: float) -> list[float]:
        return [
            max(claim.lower, min(claim.upper, fraction * target)) for claim, target in zip(claims, targets, strict=True)
        ]

    # The sum grows with the fraction, straight between two fractions at which some claim meets a bound.
    bends = sorted(
        {0.0}
        | {claim.lower / target for claim, target in zip(claims, targets, strict=True)}
        | {claim.upper / target for claim, target in zip(claims, targets, strict=True)}
    )
    before = bends[0]
    below = sum(given(before))
    if below >= total:
        return given(before), before
    for bend in bends[1:]:
        above = sum(given(bend))
        if above >= total:
            fraction = before + (bend - before) * (total - below) / (above - below)
            return given(fraction), fraction
        before, below = bend, above
    return given(before), before


@dataclass(slots=True)
class Level:
    """What `adjust` reads of a level, and `current`, the seats that it gives it."""

    exempt: bool
    limits: Limits
    seen: DemandSeen
    current: int


def adjust(levels: Sequence[Level]) -> float:
    """Give each level its seats for the next period, after its demand in the last; returns the fair fraction.

    Exempt levels have what they use. The others get the server's seats in proportion to their smoothed demand, each
    between what it used (or its lower limit) and its upper limit; where exempt requests leave too little for that, all
    come down towards their lower limits.
    """
    whole = sum(level.limits.nominal for level in levels)
    left = whole
    others: list[tuple[Level, int]] = []
    for level in levels:
        if level.exempt:
            level.current = max(level.limits.lower, level.seen.highest)
            left -= level.current
        else:
            least = max(level.limits.lower, min(level.limits.nominal, level.seen.highest))
            level.seen.target = max(least, level.seen.smoothed)
            others.append((level, least))
    lower = sum(level.limits.lower for level, _ in others)
    least_sum = sum(least for _, least in others)
    if left <= lower:
        for level, _ in others:
            level.current = level.limits.lower
        return 0.0
    if left <= least_sum:
        part = (left - lower) / (least_sum - lower)
        for level, least in others:
            level.current = level.limits.lower + go_round((least - level.limits.lower) * part)
        return 0.0
    claims = [Claim(level.seen.target, least, level.limits.upper) for level, least in others]
    seats, fraction = allocate(whole, claims)
    for (level, _), given in zip(others, seats, strict=True):
        level.current = go_round(given)
    return fraction


def go_round(value: float) -> int:
    """Halves away from zero, as Go's math.Round."""
    return math.floor(value + 0.5)
