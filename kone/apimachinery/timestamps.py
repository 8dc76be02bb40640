"""metav1.Time and MicroTime: RFC 3339 in UTC, to the second or to the microsecond; durations as Go prints them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from kone.apimachinery.errors import go_quote


def format_time(seconds: float) -> str:
    """Unix seconds as metav1.Time, e.g. "2026-11-25T03:36:32Z"; fractions are cut off as upstream does."""
    return _format_second(int(seconds))


@lru_cache(maxsize=16)
def _format_second(second: int) -> str:
    """Everything that is written within a second says the same."""
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def format_micro_time(seconds: float) -> str:
    """Unix seconds as metav1.MicroTime, e.g. "2026-11-25T03:36:32.000123Z"."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_time(text: str) -> float:
    """Unix seconds of an RFC 3339 time. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"time without an offset: {text!r}")
    return moment.timestamp()


_RFC3339 = ("2006", "-", "01", "-", "02", "T", "15", ":", "04", ":", "05", "", "Z07:00")
_RFC3339_MICRO = (*_RFC3339[:-2], ".000000", "Z07:00")
_NUMBERS: dict[str, tuple[str, int, int]] = {
    "01": ("month", 1, 12),
    "15": ("hour", 0, 23),
    "04": ("minute", 0, 59),
    "05": ("second", 0, 59),
}
ZERO_TIME = "0001-01-01T00:00:00Z"
"""Go's zero time, which JSON shows as null."""


@lru_cache(maxsize=4096)
def normal_time(text: str) -> str:
    """A metav1.Time as the API writes it back: UTC, whole seconds. Raises ValueError in Go's words (time.Parse)."""
    moment, _ = _parse_as(text, _RFC3339, "2006-01-02T15:04:05Z07:00")
    return moment.isoformat(timespec="seconds") + "Z"


@lru_cache(maxsize=4096)
def normal_micro_time(text: str) -> str:
    """A metav1.MicroTime as the API writes it back: UTC, six digits. Raises ValueError as normal_time."""
    moment, nanos = _parse_as(text, _RFC3339_MICRO, "2006-01-02T15:04:05.000000Z07:00")
    return f"{moment.isoformat(timespec='seconds')}.{nanos // 1000:06d}Z"


def _parse_as(text: str, elements: Sequence[str], layout: str) -> tuple[datetime, int]:
    """(naive UTC moment, nanoseconds). Walks the layout as Go does, so that errors name the same element."""

    def refuse(element: str, rest: str, why: str = "") -> ValueError:
        why = why or f" as {go_quote(layout)}: cannot parse {go_quote(rest)} as {go_quote(element)}"
        return ValueError(f"parsing time {go_quote(text)}{why}")

    found = {"2006": 1, "01": 1, "02": 1, "15": 0, "04": 0, "05": 0}
    nanos, offset_minutes, rest = 0, 0, text
    for element in elements:
        if element == "2006":
            if not re.match("[0-9]{4}", rest):
                raise refuse(element, rest)
            found[element], rest = int(rest[:4]), rest[4:]
        elif element in found:
            # Only the hour may have a single digit.
            digits = re.match("[0-9]{1,2}" if element == "15" else "[0-9]{2}", rest)
            if digits is None:
                raise refuse(element, rest)
            found[element], rest = int(digits[0]), rest[digits.end() :]
            name, low, high = _NUMBERS.get(element, ("day", 0, 99))
            if not low <= found[element] <= high:
                raise refuse(element, rest, f": {name} out of range")
        elif element == "":
            fraction = re.match("[.,]([0-9]+)", rest)
            if fraction is not None:
                nanos, rest = int(fraction[1][:9].ljust(9, "0")), rest[fraction.end() :]
        elif element == ".000000":
            fraction = re.match("[.,]([0-9]{6})", rest)
            if fraction is None:
                raise refuse(element, rest)
            nanos, rest = int(fraction[1]) * 1000, rest[7:]
        elif element == "Z07:00":
            offset_minutes, rest = _offset(rest, refuse)
        elif rest.startswith(element):
            rest = rest[1:]
        else:
            raise refuse(element, rest)
    if rest:
        raise refuse("", rest, f": extra text: {go_quote(rest)}")
    try:
        year, month, day, hour, minute, second = found.values()
        moment = datetime(year, month, day, hour, minute, second)
        return moment - timedelta(minutes=offset_minutes), nanos
    except (ValueError, OverflowError):
        raise refuse("", rest, ": day out of range") from None


def _offset(rest: str, refuse: Callable[..., ValueError]) -> tuple[int, str]:
    if rest.startswith("Z"):
        return 0, rest[1:]
    shape = re.match("([+-])([0-9]{2}):([0-9]{2})", rest)
    if shape is None:
        raise refuse("Z07:00", rest)
    hours, minutes = int(shape[2]), int(shape[3])
    if hours > 24:
        raise refuse("Z07:00", rest, ": time zone offset hour out of range")
    if minutes > 60:
        raise refuse("Z07:00", rest, ": time zone offset minute out of range")
    total = hours * 60 + minutes
    return (total if shape[1] == "+" else -total), rest[6:]


def go_duration(seconds: float) -> str:
    """As Go prints a duration: "1s", "1m30s", "1h0m0s", "500ms"."""
    if 0 < seconds < 1:
        return f"{seconds * 1000:g}ms"
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    if hours:
        return f"{hours}h{minutes}m{rest:g}s"
    return f"{minutes}m{rest:g}s" if minutes else f"{rest:g}s"


_GO_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_GO_PART = re.compile(r"(\d+\.?\d*|\.\d+)([^\d.]*)")


def parse_go_duration(text: str) -> float:
    """Seconds of a duration as Go writes it: "1m30s" is 90.0. Raises ValueError, in Go's words."""
    quoted = f'"{text}"'
    sign, rest = (-1.0, text[1:]) if text.startswith("-") else (1.0, text.removeprefix("+"))
    if rest == "0":
        return 0.0
    total, at = 0.0, 0
    while part := _GO_PART.match(rest, at):
        number, unit = part.groups()
        if not unit:
            raise ValueError(f"time: missing unit in duration {quoted}")
        if unit not in _GO_UNITS_S:
            raise ValueError(f'time: unknown unit "{unit}" in duration {quoted}')
        total += float(number) * _GO_UNITS_S[unit]
        at = part.end()
    if not rest or at < len(rest):
        raise ValueError(f"time: invalid duration {quoted}")
    return sign * total
