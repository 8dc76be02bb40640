"""How wide requests are."""

from __future__ import annotations

import pytest

from kone.apiserver.flowcontrol.work import Work, of_read, of_write
from kone.apiserver.requests import parse_query, parse_request


@pytest.mark.parametrize(
    ("query", "count", "average", "most", "seats"),
    [
        ("", 0, 0.0, 0, 1),
        ("", 100, 3000.0, 0, 3),
        ("", 10_000, 3000.0, 0, 10),  # what comes from the cache is at no time whole in memory
        ("limit=100", 10_000, 3000.0, 0, 3),
        ("limit=100", 10_000, 3000.0, 2, 2),
        ("fieldSelector=metadata.name%3Da", 10_000, 3000.0, 0, 1),
        ("resourceVersion=5&resourceVersionMatch=Exact", 10_000, 3000.0, 0, 100),
        ("resourceVersion=5&resourceVersionMatch=Exact&labelSelector=a&limit=1", 1000, 3000.0, 0, 15),
        ("continue=x&limit=500", 10_000, 3000.0, 0, 15),
        ("resourceVersion=5", 10_000, 3000.0, 0, 10),
        ("watch=1", 100, 3000.0, 0, 3),
        ("watch=1&resourceVersion=0", 100, 3000.0, 0, 3),
        ("watch=1&resourceVersion=77", 100, 3000.0, 0, 1),
        ("watch=1&resourceVersion=77&sendInitialEvents=true", 100, 3000.0, 0, 3),
    ],
)
def test_a_list_takes_a_seat_for_each_100_kB(query: str, count: int, average: float, most: int, seats: int) -> None:
    said = parse_query(query)
    info = parse_request("GET", "/api/v1/namespaces/ns/pods", said)
    assert of_read(info, said, count, average, most).seats == seats


@pytest.mark.parametrize(
    ("watchers", "most", "work"),
    [
        (9, 0, Work()),
        (10, 0, Work(1, 1, 0.005)),
        (25, 0, Work(1, 3, 0.005)),
        (25, 1, Work(1, 1, 0.015)),
        (1000, 0, Work(1, 10, 0.05)),
    ],
)
def test_a_write_lingers_for_those_who_watch(watchers: int, most: int, work: Work) -> None:
    assert of_write(watchers, most) == work
