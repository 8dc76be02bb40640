"""What the rules of a definition may cost: how large its values can be by their schema, and the limits.

A value without a limit of its own is as large as fits into a request, and stands there as often as fits. Source:
k8s.io/apiserver (pkg/cel/common/schemas.go) and k8s.io/apiextensions-apiserver (pkg/apis/apiextensions/validation).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from kone.apimachinery.cel_cost import Extent
from kone.apimachinery.cel_ranges import MOST
from kone.apimachinery.errors import FieldError, forbidden_field
from kone.apimachinery.structural_schema import NO_DEFAULT, Structural
from kone.registry.rules import Errors

EXPRESSION_MAX: Final = 10_000_000  # of one rule, or of its messageExpression
SCHEMA_MAX: Final = 100_000_000  # of all rules of a version together
REQUEST_MAX_BYTES: Final = 3 * 1024 * 1024
MOST_EXPENSIVE: Final = 4  # rules that are told of where all together are too dear
_TEXT_MAX: Final = REQUEST_MAX_BYTES - 2  # without its quotation marks
_BYTES_PER_CHARACTER: Final = 4
_FORMATS: Final = {"duration": (32, 3), "date": (12, 12), "date-time": (32, 21)}  # the most and the least in JSON
_ADVICE: Final = (
    "(try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are "
    "declared)"
)
_NUMBER_BYTES, _BOOLEAN_BYTES = 1, 4


def extent(node: Structural, *, root: bool = False) -> Extent | None:
    """How large a value can be; None for what expressions cannot see. `root`: of a whole object."""
    raw = node.raw
    if node.int_or_string:
        limit = raw.get("maxLength")
        return Extent(_TEXT_MAX if limit is None else _positive(limit) * _BYTES_PER_CHARACTER, 1)
    if node.type == "array":
        item = extent(node.items, root=node.items.embedded) if node.items is not None else None
        if item is None:
            return None
        return Extent(_most(raw.get("maxItems"), _TEXT_MAX // (item.least_bytes + 1)), element=item)
    if node.type == "object":
        return _object(node, root=root)
    if node.type == "string":
        return _text(node)
    if node.type == "boolean":
        return Extent(0, _BOOLEAN_BYTES)
    return Extent(0, _NUMBER_BYTES) if node.type in ("number", "integer") else None


def _object(node: Structural, *, root: bool) -> Extent | None:
    if node.values is not None and not root:
        value = extent(node.values, root=node.values.embedded)
        if value is None:
            return None
        # Of an entry there is at least a key's quotation marks, a colon and a comma.
        return Extent(_most(node.raw.get("maxProperties"), _TEXT_MAX // (value.least_bytes + 6)), 2, value, Extent())
    from kone.registry.custom_rules import escaped

    fields: dict[str, Extent] = {}
    least = 2
    required = node.raw.get("required") or ()
    for name, below in node.properties.items():
        found = extent(below, root=below.embedded)
        if found is None:
            continue
        fields[escaped(name)] = found
        if name in required and below.default is NO_DEFAULT:
            least += len(name.encode()) + found.least_bytes + 4
    if root:
        text = Extent(_TEXT_MAX)
        fields |= {"apiVersion": text, "kind": text, "metadata": Extent(fields={"name": text, "generateName": text})}
    return Extent(0, least, fields=fields)


def _text(node: Structural) -> Extent:
    form, limit = str(node.raw.get("format", "")), node.raw.get("maxLength")
    if form in _FORMATS:
        return Extent(*_FORMATS[form])
    if form == "byte":
        return Extent(_most(limit, _TEXT_MAX))
    if limit is not None:
        return Extent(_positive(limit) * _BYTES_PER_CHARACTER)
    values = node.raw.get("enum")
    if values:
        return Extent(max((len(value.encode()) for value in values if isinstance(value, str)), default=0))
    return Extent(_TEXT_MAX)


def _positive(limit: int) -> int:
    return max(limit, 0)


def _most(limit: int | None, otherwise: int) -> int:
    return otherwise if limit is None else _positive(limit)


def times_below(node: Structural, times: int | None) -> int | None:
    """How often what is below a value can stand in an object where the value stands `times`; None: without limit."""
    if node.type == "object" and node.additional is not None:
        limit = node.raw.get("maxProperties")
    elif node.type == "array":
        limit = node.raw.get("maxItems")
    else:
        return times
    return None if times is None or limit is None else min(times * _positive(limit), MOST)


def total_cost(once: int, times: int | None, size: Extent) -> int:
    """Of a rule that costs `once`, at a place that can be there `times`: as often as fits, where nothing limits it."""
    return min(once * (times if times is not None else REQUEST_MAX_BYTES // (size.least_bytes + 1)), MOST)


def over_budget(what: str, cost: int, limit: int) -> str:
    factor = cost / limit
    shown = "more than 100x" if factor > 100 else f"{factor:f}x" if factor < 1.5 else f"{factor:.1f}x"
    return f"{what} exceeds budget by factor of {shown} {_ADVICE}"


@dataclass(slots=True)
class Budget:
    """What the rules of a version cost together. `unchanged`: the version is as it was, and its rules are taken."""

    unchanged: bool = False
    total: int = 0
    _expensive: list[tuple[int, str]] = field(default_factory=list)

    def spend(self, cost: int, path: str, what: str) -> FieldError | None:
        """An expression's cost; the finding where it is too dear by itself."""
        self.total = min(self.total + cost, MOST)
        if cost >= SCHEMA_MAX // 100:
            self._expensive.append((cost, path))
        if cost > EXPRESSION_MAX and not self.unchanged:
            return forbidden_field(path, over_budget(f"estimated {what} cost", cost, EXPRESSION_MAX))
        return None

    def findings(self, path: str) -> Errors:
        """What is wrong with all together."""
        if self.total <= SCHEMA_MAX:
            return []
        dearest = sorted(self._expensive, key=lambda each: -each[0])[:MOST_EXPENSIVE]
        part = "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema"
        whole = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema"
        told = [forbidden_field(place, part) for _, place in dearest]
        return [*told, forbidden_field(path, over_budget(whole, self.total, SCHEMA_MAX))]
