"""Rules in CEL on custom resources: compiled, refused, and asked of values old and new."""

from __future__ import annotations

from typing import Any

import pytest

from kone.apimachinery.structural_schema import parse
from kone.registry.custom_rules import compiled, escaped, rule_findings, value_findings

TEXT = {"type": "string", "maxLength": 20}
LIST = {"type": "array", "items": TEXT, "maxItems": 5}
SET = {**LIST, "x-kubernetes-list-type": "set"}
KEYED = {
    "type": "array",
    "items": {"type": "object", "properties": {"k": TEXT}, "required": ["k"]},
    "maxItems": 5,
    "x-kubernetes-list-type": "map",
    "x-kubernetes-list-map-keys": ["k"],
}


def ruled(schema: dict[str, Any], *rules: str | dict[str, Any]) -> dict[str, Any]:
    return {**schema, "x-kubernetes-validations": [{"rule": r} if isinstance(r, str) else r for r in rules]}


def of_field(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": schema}}


def told(schema: dict[str, Any], value: Any, old: Any = None) -> list[str]:
    rules = compiled(parse(of_field(schema)))
    assert rules is not None
    return [str(each) for each in value_findings(rules, {"a": value}, None if old is None else {"a": old})]


@pytest.mark.parametrize(
    ("schema", "value", "findings"),
    [
        (ruled(TEXT, "self == 'a'"), "a", []),
        (ruled(TEXT, "self == 'a'"), "b", ["a: Invalid value: \"b\": failed rule: self == 'a'"]),
        (ruled(TEXT, {"rule": "self == 'a'", "message": "must be a"}), "b", ['a: Invalid value: "b": must be a']),
        (
            ruled(TEXT, {"rule": "self == 'a'", "messageExpression": "'got ' + self"}),
            "b",
            ['a: Invalid value: "b": got b'],
        ),
        (
            ruled(TEXT, {"rule": "self == 'a'", "message": "plain", "messageExpression": "' '"}),
            "b",
            ['a: Invalid value: "b": plain'],
        ),
        (
            ruled(TEXT, {"rule": "self == 'a'", "reason": "FieldValueRequired"}),
            "b",
            ["a: Required value: failed rule: self == 'a'"],
        ),
        (ruled(TEXT, {"rule": "false", "reason": "FieldValueDuplicate"}), "b", ['a: Duplicate value: "b"']),
        (
            ruled({"type": "object", "properties": {"x": TEXT}}, {"rule": "self.x == 'a'", "fieldPath": ".x"}),
            {"x": "b"},
            ["a.x: Invalid value: failed rule: self.x == 'a'"],
        ),
        (
            ruled({"type": "object", "properties": {"x": TEXT}}, "self.x == 'a'"),
            {},
            ["a: Invalid value: \"object\": no such key: x evaluating rule: self.x == 'a'"],
        ),
        (
            {"type": "array", "items": ruled(TEXT, "self == 'a'")},
            ["a", "b"],
            ["a[1]: Invalid value: \"b\": failed rule: self == 'a'"],
        ),
        (
            {"type": "object", "additionalProperties": ruled(TEXT, "self == 'a'")},
            {"k": "b"},
            ["a[k]: Invalid value: \"b\": failed rule: self == 'a'"],
        ),
        (
            ruled({**TEXT, "format": "date-time"}, "self > timestamp('2020-01-01T00:00:00Z')"),
            "2021-01-01T00:00:00Z",
            [],
        ),
        (ruled({"type": "number"}, "self < 3.0"), 2, []),
        (ruled(LIST, "self == ['b', 'a']"), ["a", "b"], ["a: Invalid value: failed rule: self == ['b', 'a']"]),
        (ruled(SET, "self == ['b', 'a']"), ["a", "b"], []),
        (ruled(SET, "self + ['a', 'c'] == ['c', 'b', 'a']"), ["a", "b"], []),
        (ruled(SET, "['b', 'a'] == self"), ["a", "b"], ["a: Invalid value: failed rule: ['b', 'a'] == self"]),
        (ruled(KEYED, "(self + self).size() == 2"), [{"k": "a"}, {"k": "b"}], []),
        (ruled({"x-kubernetes-int-or-string": True}, "type(self) == int || self == '5%'"), "5%", []),
    ],
)
def test_rules_of_values(schema: dict[str, Any], value: Any, findings: list[str]) -> None:
    assert told(schema, value) == findings


KEYED = {
    "type": "array",
    "x-kubernetes-list-type": "map",
    "x-kubernetes-list-map-keys": ["k"],
    "items": {"type": "object", "properties": {"k": TEXT, "v": ruled(TEXT, "self == oldSelf")}},
}
FIRST = {"rule": "oldSelf.hasValue() || self == 'first'", "optionalOldSelf": True}


@pytest.mark.parametrize(
    ("schema", "old", "new", "count"),
    [
        (ruled(TEXT, "self == oldSelf"), None, "a", 0),
        (ruled(TEXT, "self == oldSelf"), "a", "a", 0),
        (ruled(TEXT, "self == oldSelf"), "a", "b", 1),
        (ruled(TEXT, FIRST), None, "second", 1),
        (ruled(TEXT, FIRST), "first", "second", 0),
        (KEYED, [{"k": "a", "v": "1"}], [{"k": "b", "v": "9"}, {"k": "a", "v": "1"}], 0),
        (KEYED, [{"k": "a", "v": "1"}], [{"k": "a", "v": "2"}], 1),
        (ruled(TEXT, "self == 'a'"), "b", "b", 0),
    ],
    ids=[
        "nothing to compare with",
        "same",
        "changed",
        "the first value",
        "a later value",
        "items are told by keys",
        "an item changed",
        "wrong before, and unchanged",
    ],
)
def test_rules_of_transitions(schema: dict[str, Any], old: Any, new: Any, count: int) -> None:
    assert len(told(schema, new, old)) == count


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("self ==", "compilation failed: ERROR: <input>:1:8: Syntax error"),
        ("foo == 'a'", "compilation failed: ERROR: <input>:1:1: undeclared reference to 'foo'"),
        ("self", "cel expression must evaluate to a bool"),
        ("self == 1", "found no matching overload for '_==_' applied to '(string, int)'"),
    ],
)
def test_rules_that_mean_nothing(rule: str, text: str) -> None:
    [finding] = rule_findings(parse(of_field(ruled(TEXT, rule))), "@")
    assert finding.field == "@.properties[a].x-kubernetes-validations[0].rule"
    assert text in finding.detail


def test_a_transition_needs_values_that_belong_together() -> None:
    schema = of_field({"type": "array", "items": ruled(TEXT, "self == oldSelf"), "maxItems": 5})
    [finding] = rule_findings(parse(schema), "@")
    within = "oldSelf cannot be used on the uncorrelatable portion of the schema within @.properties[a]"
    assert finding.detail == within


def test_an_optional_old_value_that_no_sound_rule_reads_is_a_second_finding() -> None:
    schema = of_field(ruled(TEXT, {"rule": "oldSelf == self", "optionalOldSelf": True}))
    first, second = rule_findings(parse(schema), "@")
    assert "found no matching overload for '_==_' applied to '(optional_type(string), string)'" in first.detail
    assert second.detail == "may not be set if oldSelf is not used in rule"


@pytest.mark.parametrize(
    ("name", "written"), [("a", "a"), ("a-b", "a__dash__b"), ("in", "__in__"), ("a.b/c", "a__dot__b__slash__c")]
)
def test_names_as_expressions_write_them(name: str, written: str) -> None:
    assert escaped(name) == written
