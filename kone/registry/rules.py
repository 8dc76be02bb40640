"""Rules on single fields that many kinds share. Each appends what it finds to `errors`.

Validation runs on every write and nearly always finds nothing, so these take the list to append to rather than being
generators, and paths are plain strings, put together only where a list is walked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from kone.apimachinery.errors import FieldError, forbidden_field, invalid_value, not_supported, required
from kone.apimachinery.names import is_dns1123_label, is_qualified_name, is_valid_label_value
from kone.registry.generic import NOT_NEGATIVE, validate_labels

Errors = list[FieldError]
Rule = Callable[[Any], Sequence[str]]

NOT_POSITIVE = "must be greater than 0"
NOT_ABOVE_ZERO = "must be greater than zero"
"""As core words it, which upstream has apart from NOT_POSITIVE."""


def check(errors: Errors, path: str, value: Any, texts: Iterable[str]) -> None:
    """One error a text: check(errors, "spec.name", name, is_dns1123_label(name))."""
    for text in texts:
        errors.append(invalid_value(path, value, text))


def required_name(errors: Errors, path: str, value: str | None, rule: Rule = is_dns1123_label) -> None:
    """Must be there, and must be right."""
    if not value:
        errors.append(required(path))
    else:
        check(errors, path, value, rule(value))


def one_of(errors: Errors, path: str, value: str | None, supported: Sequence[str]) -> None:
    """Must be there and among `supported`, which is in upstream's order."""
    if not value:
        errors.append(required(path))
    elif value not in supported:
        errors.append(not_supported(path, value, supported))


def at_least_0(errors: Errors, path: str, value: int | None) -> None:
    if value is not None and value < 0:
        errors.append(invalid_value(path, value, NOT_NEGATIVE))


def in_range(errors: Errors, path: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        errors.append(invalid_value(path, value, f"must be between {low} and {high}, inclusive"))


def labels(errors: Errors, path: str, value: Mapping[str, str] | None) -> None:
    if value:
        errors.extend(validate_labels(value, path))


def label_selector(errors: Errors, path: str, selector: Mapping[str, Any] | None, *, any_value: bool = False) -> None:
    """A metav1.LabelSelector (unversioned.ValidateLabelSelector). `any_value` leaves bad values of expressions be."""
    if not selector:
        return
    labels(errors, f"{path}.matchLabels", selector.get("matchLabels"))
    for i, expression in enumerate(selector.get("matchExpressions") or ()):
        selector_requirement(errors, f"{path}.matchExpressions[{i}]", expression, any_value=any_value)


def selector_requirement(errors: Errors, path: str, requirement: Mapping[str, Any], *, any_value: bool) -> None:
    operator, values = requirement.get("operator", ""), requirement.get("values") or ()
    if operator in ("In", "NotIn"):
        if not values:
            errors.append(required(f"{path}.values", "must be specified when `operator` is 'In' or 'NotIn'"))
    elif operator in ("Exists", "DoesNotExist"):
        if values:
            why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
            errors.append(forbidden_field(f"{path}.values", why))
    else:
        errors.append(invalid_value(f"{path}.operator", operator, "not a valid selector operator"))
    key = requirement.get("key", "")
    check(errors, f"{path}.key", key, is_qualified_name(key))
    if not any_value:
        for i, value in enumerate(values):
            check(errors, f"{path}.values[{i}]", value, is_valid_label_value(value))


def has_invalid_selector_value(selector: Mapping[str, Any] | None) -> bool:
    """Whether an expression of the selector holds a value that is no label value."""
    return any(
        is_valid_label_value(value)
        for expression in (selector or {}).get("matchExpressions") or ()
        for value in expression.get("values") or ()
    )
