"""The line by which how full something is becomes a score: the `shape` of plugins' arguments. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kone.apimachinery.errors import FieldError, invalid_value, required
from kone.scheduler.framework import MAX_SCORE

MAX_POINT_SCORE = 10  # of a point of the line; it stands for MAX_SCORE
Line = Sequence[tuple[int, int]]
"""(per cent that is used, score) points, from left to right."""


def line(points: Sequence[Mapping[str, Any]]) -> Line:
    per_point = MAX_SCORE // MAX_POINT_SCORE
    return [(point.get("utilization") or 0, (point.get("score") or 0) * per_point) for point in points]


def on_line(shape: Line, at: int) -> int:
    """The value at a place of the line through (place, value) points; level before the first and behind the last.

    Worked case: through (0, 0) and (100, 50) the value at 30 is 0 + 50 * 30 / 100 = 15.
    """
    for i, (place, value) in enumerate(shape):
        if at <= place:
            if i == 0:
                return value
            before, base = shape[i - 1]
            return base + int((value - base) * (at - before) / (place - before))
    return shape[-1][1]


def shape_problems(path: str, points: Sequence[Mapping[str, Any]]) -> Iterable[FieldError]:
    if not points:
        yield required(path, "at least one point must be specified")
    previous = -1
    for i, point in enumerate(points):
        utilization, score = point.get("utilization") or 0, point.get("score") or 0
        if not 0 <= utilization <= 100:
            yield invalid_value(f"{path}[{i}].utilization", utilization, "not in valid range [0, 100]")
        elif utilization <= previous:
            yield invalid_value(f"{path}[{i}].utilization", utilization, "values must be sorted in increasing order")
        previous = utilization
        if not 0 <= score <= MAX_POINT_SCORE:
            yield invalid_value(f"{path}[{i}].score", score, "not in valid range [0, 10]")
