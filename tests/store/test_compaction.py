"""What history lets go of, and in which steps."""

from __future__ import annotations

import pytest

from kone.store.compaction import MAX_STEP, STEP_S, Garbage, Pace, Window
from kone.store.store import Retention


def window(retention: Retention, *batches: tuple[int, int, int, float]) -> Window:
    made = Window(retention)
    for last, events, size, now in batches:
        made.add(last, events, size, now)
    return made


@pytest.mark.parametrize(
    ("retention", "floor"),
    [
        (Retention(max_events=3, max_bytes=10**6, max_age_s=100), 6),
        (Retention(max_events=9, max_bytes=10**6, max_age_s=100), 0),
        (Retention(max_events=9, max_bytes=250, max_age_s=100), 7),
        (Retention(max_events=9, max_bytes=10**6, max_age_s=10), 8),
        (Retention(max_events=0, max_bytes=10**6, max_age_s=100), 9),
    ],
    ids=["3 events: 7, 8, 9 stay", "all stay", "250 bytes: 8, 9 stay", "10 s: 9 stays", "nothing stays"],
)
def test_the_floor_of_events_5_to_9(retention: Retention, floor: int) -> None:
    events = window(retention, *((revision, 1, 100, float(revision * 10)) for revision in range(5, 10)))
    assert events.cut(now_s=95.0) == floor


def test_batches_are_cut_whole() -> None:
    assert window(Retention(max_events=4), (10, 5, 50, 0.0), (12, 2, 20, 0.0)).cut(0.0) == 10


def test_a_window_is_overfull_a_quarter_above_its_bounds() -> None:
    assert not window(Retention(max_events=4), (10, 5, 50, 0.0)).overfull
    assert window(Retention(max_events=4), (10, 6, 50, 0.0)).overfull
    assert window(Retention(max_bytes=40), (10, 1, 51, 0.0)).overfull


def test_rows_are_taken_in_steps_and_the_floor_follows_them() -> None:
    garbage = Garbage()
    for event, row in ((6, 5), (7, 6), (7, 7), (9, 8)):
        garbage.add(event, row)
    assert garbage.take(8, 2) == ([5, 6], 7)
    assert garbage.take(8, 2) == ([7], 8)
    assert not garbage.ready(8)
    assert garbage.take(9, 2) == ([8], 9)


def test_rows_that_were_put_back_come_first_again() -> None:
    garbage = Garbage()
    for event in (6, 7, 8):
        garbage.add(event, event - 1)
    taken, floor = garbage.take(8, 2)
    garbage.put_back(taken, floor)
    assert garbage.take(8, 5) == ([5, 6, 7], 8)


def test_a_step_learns_from_how_long_the_last_one_took() -> None:
    pace = Pace(100)
    pace.took(STEP_S)
    assert pace.size == 50
    pace.took(STEP_S / 3)
    assert pace.size == 50
    for _ in range(20):
        pace.took(0.0)
    assert pace.size == MAX_STEP
    for _ in range(20):
        pace.took(1.0)
    assert pace.size == 1
