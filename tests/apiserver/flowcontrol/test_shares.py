"""Seats: what a level's share comes to, how demand is measured, and who lends to whom."""

from __future__ import annotations

import pytest

from kone.apimachinery.objects import Object
from kone.apiserver.flowcontrol.shares import (
    Claim,
    Demand,
    DemandSeen,
    Level,
    Limits,
    adjust,
    allocate,
    limits,
    max_seats,
)


def limited(shares: int, **more: int) -> Object:
    return {"type": "Limited", "limited": {"nominalConcurrencyShares": shares, **more}}


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        (limited(100, lendablePercent=90), Limits(245, 24, 845)),
        (limited(40, lendablePercent=25, borrowingLimitPercent=50), Limits(98, 73, 147)),
        (limited(5, lendablePercent=0), Limits(13, 13, 613)),
        (limited(0), Limits(0, 0, 600)),
        ({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0}}, Limits(0, 0, 600)),
        ({"type": "Exempt"}, Limits(0, 0, 600)),
    ],
)
def test_the_suggested_levels_have_600_seats_for_245_shares(spec: Object, found: Limits) -> None:
    assert limits(spec, 245, 600) == found


def test_half_of_what_may_be_lent_is_lent_at_first() -> None:
    assert Limits(98, 73, 147).first == 86


@pytest.mark.parametrize(("nominal", "hand", "seats"), [(245, 6, 37), (98, 6, 15), (49, 6, 8), (25, 4, 4), (3, 6, 1)])
def test_one_request_has_a_part_of_the_level(nominal: int, hand: int, seats: int) -> None:
    assert max_seats(nominal, hand) == seats


def test_demand_is_weighed_by_time() -> None:
    demand = Demand(0.0)
    demand.set(4, 10.0)  # ten seconds of 0, then ten of 4
    assert demand.take(20.0) == (4, 2.0, 2.0)
    assert demand.take(25.0) == (4, 4.0, 0.0)
    assert demand.take(25.0) is None


def test_smoothed_demand_rises_at_once_and_falls_slowly() -> None:
    seen = DemandSeen()
    seen.update((10, 8.0, 2.0))
    assert seen.smoothed == 10.0
    seen.update((0, 0.0, 0.0))
    assert seen.smoothed == pytest.approx(9.77)
    seen.update(None)
    assert seen.smoothed == pytest.approx(9.77)


@pytest.mark.parametrize(
    ("total", "claims", "seats"),
    [
        (20, [Claim(10, 0, 100), Claim(30, 0, 100)], [5, 15]),
        (20, [Claim(10, 8, 100), Claim(30, 0, 100)], [8, 12]),
        (80, [Claim(10, 0, 100), Claim(30, 0, 40)], [40, 40]),
        (60, [Claim(0, 0, 100), Claim(30, 0, 40)], [20, 40]),
        (10, [Claim(10, 8, 20), Claim(30, 8, 20)], [8, 8]),
        (90, [Claim(10, 0, 20), Claim(30, 0, 40)], [20, 40]),
    ],
)
def test_seats_go_by_targets_within_bounds(total: int, claims: list[Claim], seats: list[float]) -> None:
    assert allocate(total, claims)[0] == pytest.approx(seats)


def level(
    nominal: int, lower: int, upper: int, *, highest: int = 0, smoothed: float = 0.0, exempt: bool = False
) -> Level:
    return Level(exempt, Limits(nominal, lower, upper), DemandSeen(highest, smoothed=smoothed), 0)


def test_an_idle_level_lends_to_a_busy_one() -> None:
    idle, busy = level(50, 10, 150), level(50, 25, 150, highest=200, smoothed=200.0)
    adjust([idle, busy])
    assert (idle.current, busy.current) == (10, 90)


def test_what_exempt_requests_use_brings_the_others_down_to_what_they_keep() -> None:
    exempt = level(0, 0, 600, highest=70, exempt=True)
    first, second = level(50, 20, 650, highest=50), level(50, 10, 650, highest=50)
    adjust([exempt, first, second])
    assert (exempt.current, first.current, second.current) == (70, 20, 10)
    exempt.seen.highest = 40
    adjust([exempt, first, second])
    assert (first.current, second.current) == (33, 27)  # 30 of the 70 above their lower limits
