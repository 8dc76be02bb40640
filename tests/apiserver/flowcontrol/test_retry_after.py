"""When refused requests should come again."""

from __future__ import annotations

from kone.apiserver.flowcontrol.retry_after import RetryAfter


def test_it_doubles_while_many_are_refused_up_to_32_seconds_and_falls_by_one() -> None:
    found = RetryAfter()
    assert found.seconds == 1
    seen = []
    for second in range(100, 300):
        for _ in range(100):
            found.refused(second)
        seen.append(found.seconds)
    assert [seconds for at, seconds in enumerate(seen) if at == 0 or seen[at - 1] != seconds] == [1, 2, 4, 8, 16, 32]
    found.refused(400)
    found.refused(500)
    assert found.seconds == 30


def test_few_refusals_change_nothing() -> None:
    found = RetryAfter()
    for second in range(100, 120):
        found.refused(second)
        found.refused(second)
    assert found.seconds == 1
