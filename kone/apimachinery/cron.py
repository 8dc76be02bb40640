"""Cron schedules as CronJobs write them: five fields, descriptors (@daily, @every 1h30m), and when they fire next.

The grammar and its errors are those of robfig/cron's standard parser, which upstream uses.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

_MONTHS = {name: i for i, name in enumerate("jan feb mar apr may jun jul aug sep oct nov dec".split(), 1)}  # noqa: SIM905
_DAYS = {name: i for i, name in enumerate("sun mon tue wed thu fri sat".split())}  # noqa: SIM905
_FIELDS: tuple[tuple[int, int, dict[str, int]], ...] = (
    (0, 59, {}),
    (0, 23, {}),
    (1, 31, {}),
    (1, 12, _MONTHS),
    (0, 6, _DAYS),
)
_DESCRIPTORS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_HORIZON_DAYS = 5 * 366  # what does not fire within five years never does


@dataclass(frozen=True, slots=True)
class Schedule:
    """`every_s` set: a constant delay. Else the sets of minutes, hours, days, months and weekdays that match."""

    minutes: frozenset[int] = frozenset()
    hours: frozenset[int] = frozenset()
    days: frozenset[int] = frozenset()
    months: frozenset[int] = frozenset()
    weekdays: frozenset[int] = frozenset()
    any_day: bool = False
    """Whether the day of the month, or of the week, is "*": then both must match, else either does."""
    every_s: float = 0.0
    zone: tzinfo | None = None

    def next_after(self, moment: datetime) -> datetime | None:
        """The first time after `moment` (aware), in its zone or the schedule's own; None for never.

        Times that a change to summer time skips do not fire.
        """
        if self.every_s:
            return moment.replace(microsecond=0) + timedelta(seconds=self.every_s)
        zone = self.zone or moment.tzinfo or UTC
        start = moment.astimezone(zone)
        after = start.replace(tzinfo=None)
        day = after.replace(hour=0, minute=0, second=0, microsecond=0)
        times = _times_of_day(self.hours, self.minutes)
        for _ in range(_HORIZON_DAYS):
            if day.month in self.months and self._is_day(day):
                # What the clocks on the wall have passed is passed, whatever summer time does.
                for found in (day + time for time in times[bisect_right(times, after - day) :]):
                    aware = found.replace(tzinfo=zone)
                    exists = aware.astimezone(UTC).astimezone(zone).replace(tzinfo=None) == found
                    if exists and aware > moment:
                        return aware
            day += timedelta(days=1)
        return None

    def _is_day(self, day: datetime) -> bool:
        by_month, by_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return by_month and by_week if self.any_day else by_month or by_week


@lru_cache(256)
def _times_of_day(hours: frozenset[int], minutes: frozenset[int]) -> list[timedelta]:
    return [timedelta(hours=hour, minutes=minute) for hour in sorted(hours) for minute in sorted(minutes)]


def parse_schedule(text: str) -> Schedule:
    """Raises ValueError in upstream's words."""
    if not text:
        raise ValueError("empty spec string")
    zone: tzinfo | None = None
    if text.startswith(("TZ=", "CRON_TZ=")):
        named, _, rest = text.partition(" ")
        name = named.partition("=")[2]
        try:
            zone = ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"provided bad location {name}: unknown time zone {name}") from None
        text = rest.strip()
    if text.startswith("@every "):
        return Schedule(every_s=_duration(text), zone=zone)
    if text.startswith("@"):
        if text not in _DESCRIPTORS:
            raise ValueError(f"unrecognized descriptor: {text}")
        text = _DESCRIPTORS[text]
    fields = text.split()
    if len(fields) != len(_FIELDS):
        raise ValueError(f"expected exactly 5 fields, found {len(fields)}: [{' '.join(fields)}]")
    found = [_field(field, *bounds) for field, bounds in zip(fields, _FIELDS, strict=True)]
    minutes, hours, days, months, weekdays = (frozenset(numbers) for numbers, _ in found)
    return Schedule(minutes, hours, days, months, weekdays, any_day=found[2][1] or found[4][1], zone=zone)


def _duration(text: str) -> float:
    value = text.removeprefix("@every ")
    parts = re.findall(r"([0-9]*\.?[0-9]+)(ns|us|µs|ms|s|m|h)", value)
    if not parts or "".join(number + unit for number, unit in parts) != value:
        raise ValueError(f'failed to parse duration {text}: time: invalid duration "{value}"')
    return max(1.0, float(int(sum(float(number) * _UNITS_S[unit] for number, unit in parts))))


def _field(text: str, low: int, high: int, names: dict[str, int]) -> tuple[set[int], bool]:
    """(the numbers of a comma-separated field, whether it is a star)."""
    numbers: set[int] = set()
    star = False
    for part in filter(None, text.split(",")):
        found, is_star = _range(part, low, high, names)
        numbers.update(found)
        star = star or is_star
    return numbers, star


def _range(text: str, low: int, high: int, names: dict[str, int]) -> tuple[range, bool]:
    """A number, a range or a star, with an optional step: "5", "1-3", "*/15", "5/10"."""
    whole, *steps = text.split("/")
    first, *more = whole.split("-")
    star = first in ("*", "?")
    if star:
        start, end = low, high
    else:
        start = _number(first, names)
        if len(more) > 1:
            raise ValueError(f"too many hyphens: {text}")
        end = _number(more[0], names) if more else start
    if len(steps) > 1:
        raise ValueError(f"too many slashes: {text}")
    step = _number(steps[0], {}) if steps else 1
    if steps and not more:
        end = high
    if start < low:
        raise ValueError(f"beginning of range ({start}) below minimum ({low}): {text}")
    if end > high:
        raise ValueError(f"end of range ({end}) above maximum ({high}): {text}")
    if start > end:
        raise ValueError(f"beginning of range ({start}) beyond end of range ({end}): {text}")
    if step == 0:
        raise ValueError(f"step of range should be a positive number: {text}")
    return range(start, end + 1, step), star and step == 1


def _number(text: str, names: dict[str, int]) -> int:
    if text.lower() in names:
        return names[text.lower()]
    if not re.fullmatch("[+-]?[0-9]+", text):
        raise ValueError(f'failed to parse int from {text}: strconv.Atoi: parsing "{text}": invalid syntax')
    number = int(text)
    if number < 0:
        raise ValueError(f"negative number ({number}) not allowed: {text}")
    return number
