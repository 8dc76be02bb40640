"""IntOrString fields that mean a number of pods: 3, or "25%" of a total."""

from __future__ import annotations

from typing import Any


def scaled_value(value: Any, total: int, *, round_up: bool) -> int:
    """The number that `value` stands for (intstr.GetScaledValueFromIntOrPercent). Raises ValueError."""
    if isinstance(value, int):
        return value
    text = str(value)
    if not text.endswith("%") or not text[:-1].lstrip("-").isdigit():
        raise ValueError(f"invalid value for IntOrString: {text!r} is neither a number nor a percentage")
    product = int(text[:-1]) * total
    return -(-product // 100) if round_up else product // 100
