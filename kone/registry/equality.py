"""Equality as upstream judges it when it compares an update with what is stored (apiequality.Semantic)."""

from __future__ import annotations

from typing import Any

from kone.apimachinery.quantity import parse_quantity

_RESOURCE_MAPS = frozenset(("limits", "requests", "overhead", "capacity", "hard"))


def same(value: Any, other: Any) -> bool:
    """Of two decoded values: missing and null are the same; quantities compare by amount ("1024" is "1Ki").

    Empty lists, maps and texts that say nothing are gone after decoding: what is empty and still there is behind a
    pointer in Go's types, and differs from nothing.
    """
    if value == other:
        return True
    if isinstance(value, dict) and isinstance(other, dict):
        return all(
            _same_amounts(value.get(key), other.get(key))
            if key in _RESOURCE_MAPS
            else same(value.get(key), other.get(key))
            for key in value.keys() | other.keys()
        )
    if isinstance(value, list) and isinstance(other, list):
        return len(value) == len(other) and all(map(same, value, other))
    return False


def _same_amounts(value: Any, other: Any) -> bool:
    if isinstance(value, list) or isinstance(other, list):  # a ResourceClaim's requests are no amounts
        return same(value, other)
    value, other = value or {}, other or {}
    return value.keys() == other.keys() and all(_same_amount(value[key], other[key]) for key in value)


def _same_amount(value: Any, other: Any) -> bool:
    if isinstance(value, dict):  # a device's capacity is more than an amount
        return same(value, other)
    try:
        return parse_quantity(value) == parse_quantity(other)
    except (ValueError, AttributeError):
        return bool(value == other)
