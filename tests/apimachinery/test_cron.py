"""Cron schedules: when they fire next, and upstream's words for those that are none."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from kone.apimachinery.cron import parse_schedule

NOW = datetime(2026, 1, 30, 22, 59, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("schedule", "times"),
    [
        ("* * * * *", ["01-30T23:00", "01-30T23:01"]),
        ("*/5 1-3,7 * JAN-MAR mon", ["02-02T01:00", "02-02T01:05"]),
        ("@hourly", ["01-30T23:00", "01-31T00:00"]),
        ("@weekly", ["02-01T00:00", "02-08T00:00"]),
        ("0 0 13 * 5", ["02-06T00:00", "02-13T00:00"]),  # the 13th or a Friday
        ("0 0 13 * *", ["02-13T00:00", "03-13T00:00"]),
        ("5/15 * * * *", ["01-30T23:05", "01-30T23:20"]),
        ("1,,2 * * * *", ["01-30T23:01", "01-30T23:02"]),
        ("0 0 ? * 1", ["02-02T00:00", "02-09T00:00"]),
    ],
)
def test_next(schedule: str, times: list[str]) -> None:
    found, moment = [], NOW
    for _ in times:
        following = parse_schedule(schedule).next_after(moment)
        assert following is not None
        moment = following
        found.append(moment.strftime("%m-%dT%H:%M"))
    assert found == times


def test_a_constant_delay() -> None:
    assert parse_schedule("@every 1h30m").next_after(NOW) == datetime(2026, 1, 31, 0, 29, 30, tzinfo=UTC)


def test_never() -> None:
    assert parse_schedule("0 0 31 2 *").next_after(NOW) is None


def test_what_summer_time_skips_does_not_fire() -> None:
    berlin = ZoneInfo("Europe/Berlin")  # 2026-03-29: 02:00 becomes 03:00
    after = parse_schedule("30 2 * * *").next_after(datetime(2026, 3, 28, 12, tzinfo=berlin))
    assert after == datetime(2026, 3, 30, 2, 30, tzinfo=berlin)


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        ("", "empty spec string"),
        ("x", "expected exactly 5 fields, found 1: [x]"),
        ("@often", "unrecognized descriptor: @often"),
        ("@every x", 'failed to parse duration @every x: time: invalid duration "x"'),
        ("60 * * * *", "end of range (60) above maximum (59): 60"),
        ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
        ("*/0 * * * *", "step of range should be a positive number: */0"),
        ("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1"),
        ("a * * * *", 'failed to parse int from a: strconv.Atoi: parsing "a": invalid syntax'),
        ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
        ("1/2/3 * * * *", "too many slashes: 1/2/3"),
        ("TZ=Nope/X 0 * * * *", "provided bad location Nope/X: unknown time zone Nope/X"),
    ],
)
def test_errors(schedule: str, text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_schedule(schedule)
    assert str(caught.value) == text
