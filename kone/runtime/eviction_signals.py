"""What the node is short of: signals, the thresholds at which it matters, and the conditions that they make. Pure.

Signals and defaults are those of upstream's kubelet (evictionHard, evictionPressureTransitionPeriod). A condition
stays true for five minutes after its signal was last below the threshold, so that a node does not flap.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from kone.apimachinery.quantity import Notation, Quantity, parse_quantity

MEMORY = "memory.available"
NODE_DISK, NODE_INODES = "nodefs.available", "nodefs.inodesFree"
IMAGE_DISK, IMAGE_INODES = "imagefs.available", "imagefs.inodesFree"
PIDS = "pid.available"

HARD: Final[Mapping[str, str]] = {
    MEMORY: "100Mi",
    NODE_DISK: "10%",
    NODE_INODES: "5%",
    IMAGE_DISK: "15%",
    IMAGE_INODES: "5%",
}
TRANSITION_S: Final = 300.0

CONDITIONS: Final[Mapping[str, str]] = {
    MEMORY: "MemoryPressure",
    NODE_DISK: "DiskPressure",
    NODE_INODES: "DiskPressure",
    IMAGE_DISK: "DiskPressure",
    IMAGE_INODES: "DiskPressure",
    PIDS: "PIDPressure",
}
RESOURCES: Final[Mapping[str, str]] = {
    MEMORY: "memory",
    NODE_DISK: "ephemeral-storage",
    NODE_INODES: "inodes",
    IMAGE_DISK: "ephemeral-storage",
    IMAGE_INODES: "inodes",
    PIDS: "pids",
}


@dataclass(frozen=True, slots=True)
class Observation:
    """One signal: how much is left of how much; bytes, inodes or process ids."""

    available: int
    capacity: int


Observations = Mapping[str, Observation]


def threshold(text: str, capacity: int) -> int:
    """The amount that a threshold means: "100Mi" as it is, "10%" of the capacity."""
    if text.endswith("%"):
        return int(capacity * float(text[:-1]) / 100)
    return parse_quantity(text).value()


def met(observations: Observations, thresholds: Mapping[str, str] = HARD) -> list[str]:
    """The signals that are below their thresholds, the most urgent first: memory before everything."""
    found = [
        signal
        for signal, text in thresholds.items()
        if (seen := observations.get(signal)) is not None and seen.available < threshold(text, seen.capacity)
    ]
    return sorted(found, key=lambda signal: signal != MEMORY)


def shortage(signal: str, observations: Observations, thresholds: Mapping[str, str] = HARD) -> str:
    """The sentence about a signal in an eviction's message."""
    seen = observations[signal]
    notation: Notation = "BinarySI" if RESOURCES[signal] in ("memory", "ephemeral-storage") else "DecimalSI"
    wanted = Quantity.of(threshold(thresholds[signal], seen.capacity), "BinarySI").canonical()
    available = Quantity.of(seen.available, notation).canonical()
    return f"Threshold quantity: {wanted}, available: {available}. "


class Pressures:
    """Which of the node's pressure conditions hold, over time."""

    def __init__(self) -> None:
        self._last_seen: dict[str, float] = {}

    def observe(self, signals: Iterable[str], now: float) -> frozenset[str]:
        """The conditions that hold, given the signals that are below their thresholds now (monotonic seconds)."""
        self._last_seen |= {CONDITIONS[signal]: now for signal in signals}
        return frozenset(kind for kind, seen in self._last_seen.items() if now - seen < TRANSITION_S)
