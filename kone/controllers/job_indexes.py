"""Sets of completion indexes as Jobs write them: "0-3,5,7,8" (batch/v1 JobStatus.completedIndexes)."""

from __future__ import annotations

from collections.abc import Iterable


def parse_indexes(text: str, completions: int) -> set[int]:
    """The indexes below `completions` that the text names; what cannot be read is left out."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.isdigit() and (last.isdigit() or not last):
            found.update(range(int(first), min(int(last or first), completions - 1) + 1))
    return found


def format_indexes(indexes: Iterable[int]) -> str:
    """Two neighbours are written apart ("7,8"), three and more as a range ("0-3")."""
    parts: list[str] = []
    first = last = -2
    for index in [*sorted(indexes), -2]:
        if index == last + 1:
            last = index
            continue
        if first >= 0:
            parts.append(str(first) if first == last else f"{first},{last}" if last == first + 1 else f"{first}-{last}")
        first = last = index
    return ",".join(parts)
