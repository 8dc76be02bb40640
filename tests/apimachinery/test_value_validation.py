"""Values against schemas, in upstream's words."""

from __future__ import annotations

from typing import Any

import pytest

from kone.apimachinery.string_formats import FORMATS
from kone.apimachinery.value_validation import validate

INT_OR_STRING = {"x-kubernetes-int-or-string": True}
ONE_OF = {"type": "object", "oneOf": [{"required": ["x"]}, {"required": ["y"]}]}


@pytest.mark.parametrize(
    ("schema", "value", "findings"),
    [
        ({"type": "string", "minLength": 2}, "a", ['p: Invalid value: "a": p in body should be at least 2 chars long']),
        ({"type": "string", "maxLength": 1}, "éé", ["p: Too long: may not be more than 1 byte"]),
        ({"type": "string", "maxLength": 2}, "éé", []),
        ({"type": "string"}, 3, ['p: Invalid value: "integer": p in body must be of type string: "integer"']),
        (
            {"type": "string", "pattern": "^[a-z]+$"},
            "A",
            ["p: Invalid value: \"A\": p in body should match '^[a-z]+$'"],
        ),
        ({"type": "string", "enum": ["a", "b"]}, "c", ['p: Unsupported value: "c": supported values: "a", "b"']),
        ({"type": "integer", "enum": [1, 2]}, 3, ['p: Unsupported value: 3: supported values: "1", "2"']),
        ({"type": "integer", "minimum": 1}, 0, ["p: Invalid value: 0: p in body should be greater than or equal to 1"]),
        ({"type": "integer", "maximum": 9}, 10, ["p: Invalid value: 10: p in body should be less than or equal to 9"]),
        (
            {"type": "integer", "minimum": 1, "exclusiveMinimum": True},
            1,
            ["p: Invalid value: 1: p in body should be greater than 1"],
        ),
        ({"type": "integer", "multipleOf": 3}, 4, ["p: Invalid value: 4: p in body should be a multiple of 3"]),
        ({"type": "integer"}, 2.0, []),
        (
            {"type": "integer"},
            1.5,
            [
                'p: Invalid value: "number": p in body must be of type integer: "number"',
                '<nil>: Invalid value: "": Checked value must be of type integer (default format) in p',
            ],
        ),
        (
            {"type": "integer", "format": "int32"},
            3_000_000_000,
            ['<nil>: Invalid value: "": Checked value must be of type integer with format int32 in p'],
        ),
        ({"type": "boolean", "nullable": True}, None, []),
        (INT_OR_STRING, 3, []),
        (INT_OR_STRING, True, ['p: Invalid value: "boolean": p in body must be of type integer,string: "boolean"']),
        ({"type": "array", "minItems": 1}, [], ["p: Invalid value: 0: p in body should have at least 1 items"]),
        ({"type": "array", "maxItems": 1}, [1, 2], ["p: Too many: 2: must have at most 1 item"]),
        (
            {"type": "array", "items": {"type": "integer"}},
            [1, "b"],
            ['p[1]: Invalid value: "string": p[1] in body must be of type integer: "string"'],
        ),
        ({"type": "object", "required": ["x", "y"]}, {}, ["p.x: Required value", "p.y: Required value"]),
        (
            {"type": "object", "additionalProperties": {"type": "integer"}},
            {"a": "x"},
            ['p.a: Invalid value: "string": p.a in body must be of type integer: "string"'],
        ),
        ({"type": "object", "maxProperties": 1}, {"a": 1, "b": 2}, ["p: Too many: 2: must have at most 1 item"]),
        (
            ONE_OF,
            {},
            [
                '<nil>: Invalid value: "": "p" must validate one and only one schema (oneOf). Found none valid',
                "p.x: Required value",
            ],
        ),
        (
            ONE_OF,
            {"x": 1, "y": 1},
            ['<nil>: Invalid value: "": "p" must validate one and only one schema (oneOf). Found 2 valid alternatives'],
        ),
        (
            {"type": "string", "anyOf": [{"pattern": "^a"}, {"pattern": "^b"}]},
            "c",
            [
                '<nil>: Invalid value: "": "p" must validate at least one schema (anyOf)',
                "p: Invalid value: \"c\": p in body should match '^a'",
            ],
        ),
        (
            {"type": "string", "allOf": [{"pattern": "^a"}, {"minLength": 3}]},
            "b",
            [
                "p: Invalid value: \"b\": p in body should match '^a'",
                'p: Invalid value: "b": p in body should be at least 3 chars long',
                '<nil>: Invalid value: "": "p" must validate all the schemas (allOf). None validated',
            ],
        ),
        (
            {"type": "string", "not": {"enum": ["no"]}},
            "no",
            ['<nil>: Invalid value: "": "p" must not validate the schema (not)'],
        ),
        (
            {"type": "string", "format": "date"},
            "2020-02-30",
            ['p: Invalid value: "2020-02-30": p in body must be of type date: "2020-02-30"'],
        ),
        ({"type": "string", "format": "unheard-of"}, "x", []),
    ],
)
def test_findings(schema: dict[str, Any], value: Any, findings: list[str]) -> None:
    assert [str(each) for each in validate(value, schema, "p")] == findings


GOOD = {
    "bsonobjectid": "507f1f77bcf86cd799439011",
    "byte": "aGVsbG8=",
    "cidr": "1.2.3.0/24",
    "creditcard": "4111 1111 1111 1111",
    "date": "2020-02-28",
    "date-time": "2020-01-01T00:00:00.5+02:00",
    "duration": "1h5m",
    "email": "a@b.com",
    "hexcolor": "#a1b2c3",
    "hostname": "example.com",
    "ipv4": "1.2.3.4",
    "ipv6": "::1",
    "isbn": "978-3-16-148410-0",
    "isbn10": "0306406152",
    "isbn13": "9783161484100",
    "k8s-long-name": "a.b-c",
    "k8s-short-name": "a-b",
    "mac": "00:11:22:33:44:55",
    "rgbcolor": "rgb(1, 2, 255)",
    "ssn": "111-22-3333",
    "uri": "https://a.b/c?d",
    "uuid": "123e4567-e89b-12d3-a456-426614174000",
    "uuid3": "123e4567-e89b-32d3-a456-426614174000",
    "uuid4": "123e4567-e89b-42d3-a456-426614174000",
    "uuid5": "123e4567-e89b-52d3-a456-426614174000",
}


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"password", "datetime"}))
def test_formats(name: str) -> None:
    assert FORMATS[name](GOOD[name])
    assert not FORMATS[name]("no_such thing!")
