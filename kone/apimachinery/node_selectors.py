"""Node selectors: which nodes a pod's affinity or a volume's nodeAffinity allows (component-helpers, nodeaffinity)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def matches(selector: Mapping[str, Any], labels: Mapping[str, str], name: str) -> bool:
    """Whether a node of these labels and this name meets one of the selector's terms."""
    return any(matches_term(term, labels, name) for term in selector.get("nodeSelectorTerms") or ())


def matches_term(term: Mapping[str, Any], labels: Mapping[str, str], name: str) -> bool:
    """A term without any requirement matches nothing."""
    expressions, fields = term.get("matchExpressions") or (), term.get("matchFields") or ()
    if not expressions and not fields:
        return False
    return all(meets(requirement, labels) for requirement in expressions) and all(
        meets(requirement, {"metadata.name": name}) for requirement in fields
    )


def meets(requirement: Mapping[str, Any], values: Mapping[str, str]) -> bool:
    value = values.get(requirement.get("key", ""))
    wanted: Sequence[str] = requirement.get("values") or []
    operator = requirement.get("operator")
    if operator == "In":
        return value in wanted
    if operator == "NotIn":
        return value not in wanted
    if operator == "Exists":
        return value is not None
    if operator == "DoesNotExist":
        return value is None
    number, bound = _integer(value), _integer(wanted[0] if len(wanted) == 1 else None)
    if number is None or bound is None:
        return False
    return number > bound if operator == "Gt" else operator == "Lt" and number < bound


def _integer(text: str | None) -> int | None:
    try:
        return int(text) if text is not None else None
    except ValueError:
        return None
