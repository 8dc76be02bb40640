"""Rules on metav1.Condition lists, and on values that may be a number or a percentage."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from kone.apimachinery.errors import duplicate, invalid_value, not_supported, required, too_long
from kone.apimachinery.names import is_qualified_name, is_valid_percent, regex_error
from kone.registry.rules import Errors, at_least_0, check

_STATUSES = ("False", "True", "Unknown")
_REASON = "[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?"
_REASON_TEXT = (
    "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric "
    "characters or '_,:', and must end with an alphanumeric character or '_'"
)
_REASON_EXAMPLES = ("my_name", "MY_NAME", "MyName", "ReasonA,ReasonB", "ReasonA:ReasonB")
_MAX_REASON, _MAX_MESSAGE = 1024, 32 * 1024


def conditions(errors: Errors, path: str, found: Sequence[Mapping[str, Any]]) -> None:
    seen: set[str] = set()
    for i, each in enumerate(found):
        kind = each.get("type", "")
        if kind in seen:
            errors.append(duplicate(f"{path}[{i}]", kind))
        seen.add(kind)
        _condition(errors, f"{path}[{i}]", each)


def _condition(errors: Errors, path: str, condition: Mapping[str, Any]) -> None:
    kind, status = condition.get("type", ""), condition.get("status", "")
    reason, message = condition.get("reason", ""), condition.get("message", "")
    if kind:
        check(errors, f"{path}.type", kind, is_qualified_name(kind))
    else:
        errors.append(required(f"{path}.type", "is required"))
    if not status:
        errors.append(required(f"{path}.status"))
    elif status not in _STATUSES:
        errors.append(not_supported(f"{path}.status", status, _STATUSES))
    if condition.get("observedGeneration", 0) < 0:
        text = "must be greater than or equal to zero"
        errors.append(invalid_value(f"{path}.observedGeneration", condition["observedGeneration"], text))
    if not condition.get("lastTransitionTime"):
        errors.append(required(f"{path}.lastTransitionTime"))
    if not reason:
        errors.append(required(f"{path}.reason"))
    else:
        check(errors, f"{path}.reason", reason, condition_reason(reason))
        if len(reason.encode()) > _MAX_REASON:
            errors.append(too_long(f"{path}.reason", _MAX_REASON))
    if len(message.encode()) > _MAX_MESSAGE:
        errors.append(too_long(f"{path}.message", _MAX_MESSAGE))


def condition_reason(value: str) -> list[str]:
    return [] if re.fullmatch(_REASON, value) else [regex_error(_REASON_TEXT, _REASON, *_REASON_EXAMPLES)]


def positive_int_or_percent(errors: Errors, path: str, value: int | str) -> None:
    """Not negative as a number, "N%" as a text (ValidatePositiveIntOrPercent)."""
    if isinstance(value, str):
        check(errors, path, value, is_valid_percent(value))
    else:
        at_least_0(errors, path, value)


def not_more_than_100_percent(errors: Errors, path: str, value: int | str) -> None:
    if isinstance(value, str) and re.fullmatch("[0-9]+%", value) and int(value[:-1]) > 100:
        errors.append(invalid_value(path, value, "must not be greater than 100%"))
