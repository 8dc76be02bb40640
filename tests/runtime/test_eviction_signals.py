"""What the node is short of: thresholds, their order, and conditions that outlast them."""

from __future__ import annotations

import pytest

from kone.runtime.eviction_signals import (
    IMAGE_DISK,
    MEMORY,
    NODE_DISK,
    NODE_INODES,
    PIDS,
    Observation,
    Pressures,
    met,
    shortage,
    threshold,
)

GIBI, MEBI = 1 << 30, 1 << 20


@pytest.mark.parametrize(
    ("text", "capacity", "amount"),
    [("100Mi", 0, 100 * MEBI), ("10%", 50 * GIBI, 5 * GIBI), ("5%", 999, 49)],
)
def test_thresholds(text: str, capacity: int, amount: int) -> None:
    assert threshold(text, capacity) == amount


def test_a_signal_is_met_below_its_threshold_and_memory_comes_first() -> None:
    observations = {
        NODE_DISK: Observation(9, 100),
        IMAGE_DISK: Observation(15, 100),
        NODE_INODES: Observation(4, 100),
        PIDS: Observation(0, 100),
        MEMORY: Observation(100 * MEBI - 1, GIBI),
    }
    assert met(observations) == [MEMORY, NODE_DISK, NODE_INODES]
    assert met({NODE_DISK: Observation(10, 100)}) == []


@pytest.mark.parametrize(
    ("signal", "seen", "text"),
    [
        (MEMORY, Observation(50 * MEBI, GIBI), "Threshold quantity: 100Mi, available: 50Mi. "),
        (NODE_DISK, Observation(GIBI, 50 * GIBI), "Threshold quantity: 5Gi, available: 1Gi. "),
        (NODE_INODES, Observation(1000, 100_000), "Threshold quantity: 5000, available: 1k. "),
    ],
)
def test_a_shortage_in_words(signal: str, seen: Observation, text: str) -> None:
    assert shortage(signal, {signal: seen}) == text


def test_a_condition_holds_for_five_minutes_after_it_was_last_seen() -> None:
    pressures = Pressures()
    assert pressures.observe([], 0) == set()
    assert pressures.observe([MEMORY, NODE_DISK, NODE_INODES], 0) == {"MemoryPressure", "DiskPressure"}
    assert pressures.observe([MEMORY], 200) == {"MemoryPressure", "DiskPressure"}
    assert pressures.observe([], 300) == {"MemoryPressure"}
    assert pressures.observe([], 499) == {"MemoryPressure"}
    assert pressures.observe([], 500) == set()
