"""What rules may cost. The figures are those that upstream's own compiler gives (schema/cel/compilation_test.go)."""

from __future__ import annotations

from typing import Any

import pytest

from kone.apimachinery.structural_schema import parse
from kone.registry import custom_rules
from kone.registry.custom_rules import rule_findings
from kone.registry.rule_costs import EXPRESSION_MAX, Budget, over_budget
from kone.registry.schema_rules import schema_findings

ADVICE = (
    "(try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are "
    "declared)"
)
OBJECT = {
    "type": "object",
    "properties": {"required": {"type": "string"}, "optional": {"type": "string"}},
    "required": ["required"],
}
INT_OR_STRING = {"x-kubernetes-int-or-string": True}
SCALARS = {
    **{kind: {"type": kind} for kind in ("number", "string", "boolean")},
    **{form: {"type": "string", "format": form} for form in ("duration", "date", "date-time")},
    "int-or-string": INT_OR_STRING,
}


def array(of: str | dict[str, Any], most: int | None) -> dict[str, Any]:
    limit = {} if most is None else {"maxItems": most}
    return {"type": "array", "items": SCALARS[of] if isinstance(of, str) else of, **limit}


def mapping(of: str | dict[str, Any], most: int | None) -> dict[str, Any]:
    limit = {} if most is None else {"maxProperties": most}
    return {"type": "object", "additionalProperties": SCALARS[of] if isinstance(of, str) else of, **limit}


def text(of: str, most: int | None) -> dict[str, Any]:
    return {"type": "string", **({} if most is None else {"maxLength": most}), **({"format": of} if of else {})}


def total(schema: dict[str, Any], rule: str) -> int:
    """What the rule costs on one value."""
    budget = Budget()
    custom_rules._Compiler(budget).node(parse({**schema, "x-kubernetes-validations": [{"rule": rule}]}), "@")
    return budget.total


@pytest.mark.parametrize(
    ("make", "of", "rule", "unlimited", "limit", "limited"),
    [
        (array, "number", "self.all(x, true)", 4718591, 10, 32),
        (array, "string", "self.all(x, true)", 3145727, 20, 62),
        (array, "boolean", "self.all(x, true)", 1887437, 5, 17),
        (array, array("number", None), "self.all(x, true)", 3145727, 100, 302),
        (array, OBJECT, "self.all(x, true)", 555128, 50, 152),
        (mapping, "number", "self.all(x, true)", 1348169, 10, 32),
        (mapping, "string", "self.all(x, true)", 1179647, 3, 11),
        (mapping, "boolean", "self.all(x, true)", 943718, 100, 302),
        (text, "", "self.contains('test')", 314574, 10, 5),
        (text, "", "self.startsWith('test')", 2, 15, 2),
        (text, "", 'size(self + "hello") > size("hello")', 314578, 4, 7),
        (array, "number", "self[1] == 0.0", 2, 5000, 2),
        (array, "string", "self[1] == self[1]", 314577, 8, 314577),
        (array, "number", "self.all(x, self.all(y, true))", None, 10, 352),
        (array, "number", "self.all(x, self.all(y, self.all(z, true)))", None, 10, 3552),
        (text, "", 'self.matches("x")', 314574, 50, 22),
        (text, "", '"".matches("(((((((((())))))))))[0-9]")', 7, 10, 7),
        (text, "", 'self.matches("")', 1, 100, 1),
        (mapping, "number", 'self["x"] == 0.0', 2, 0, 2),
        (text, "", 'self == "x"', 2, 0, 1),
        (text, "byte", 'self == b"x"', 2, 0, 1),
        (array, "number", "self.all(x, x == 0.0)", 6291454, 3 * 1024 * 2048, 25165826),
        (array, "int-or-string", "self.all(x, true)", 4718591, 10, 32),
        (array, "int-or-string", "self[0] == 5", 3, 10, 3),
        (array, OBJECT, "self[0] == null", 2, 422, 2),
        (array, array("number", None), "self[0][0] == -1.0", 3, 51, 3),
        (array, "duration", "self.all(x, true)", 2359295, 5, 17),
        (array, "duration", "self[0].getHours() == 2", 4, 525, 4),
        (array, "date", "self.all(x, true)", 725936, 15, 47),
        (array, "date-time", "self.all(x, true)", 428963, 25, 77),
        (mapping, "int-or-string", "self.all(x, true)", 1348169, 15, 47),
        (mapping, "duration", "self.all(x, true)", 1048577, 5, 17),
        (mapping, "date", "self.all(x, true)", 524288, 10, 32),
    ],
)
def test_an_estimate_is_upstreams(
    make: Any, of: Any, rule: str, unlimited: int | None, limit: int, limited: int
) -> None:
    if unlimited is None:
        assert total(make(of, None), rule) > EXPRESSION_MAX
    else:
        assert total(make(of, None), rule) == unlimited
    assert total(make(of, limit), rule) == limited


def test_a_rule_costs_as_often_as_its_value_can_be_there() -> None:
    ruled = {"type": "string", "maxLength": 10, "x-kubernetes-validations": [{"rule": "self.contains('test')"}]}
    budgets = []
    for most in (4, None):
        budget = Budget()
        custom_rules._Compiler(budget).node(parse(array(ruled, most)), "@")
        budgets.append(budget.total)
    assert budgets == [4 * 5, 3 * 1024 * 1024 // 3 * 5]


def test_a_rule_that_is_too_dear_is_refused_but_not_one_that_was_there() -> None:
    schema = {"type": "object", "properties": {"l": array("string", None)}}
    schema["properties"]["l"]["x-kubernetes-validations"] = [{"rule": "self.all(x, self.all(y, x == y))"}]
    rule, part, whole = rule_findings(parse(schema), "@")
    place = "@.properties[l].x-kubernetes-validations[0].rule"
    assert str(rule) == (f"{place}: Forbidden: estimated rule cost exceeds budget by factor of more than 100x {ADVICE}")
    assert str(part) == (
        f"{place}: Forbidden: contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema"
    )
    assert str(whole) == (
        "@: Forbidden: x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema exceeds budget "
        f"by factor of more than 100x {ADVICE}"
    )
    assert len(schema_findings(schema, "@", schema)) == 2
    assert len(schema_findings(schema, "@", {})) == 3


def test_a_message_is_made_once_and_has_a_limit_of_its_own() -> None:
    rule = {"rule": "true", "messageExpression": "self.all(x, self.all(y, x == y)) ? 'a' : 'b'"}
    schema = {"type": "object", "properties": {"l": {**array("string", None), "x-kubernetes-validations": [rule]}}}
    first = rule_findings(parse(schema), "@")[0]
    assert first.detail.startswith("estimated messageExpression cost exceeds budget by factor of more than 100x")


@pytest.mark.parametrize(("cost", "factor"), [(10_000_001, "1.000000x"), (15_000_000, "1.5x"), (1_000_000_001, "more")])
def test_how_far_it_is_over(cost: int, factor: str) -> None:
    assert f"exceeds budget by factor of {factor}" in over_budget("it", cost, EXPRESSION_MAX)
