"""Which schemas a definition may have, in upstream's words. `@` stands for the schema's place."""

from __future__ import annotations

from typing import Any

import pytest

from kone.registry.schema_rules import schema_findings, schema_warnings, selectable_findings

STRING = {"type": "string"}


def told(schema: dict[str, Any]) -> list[str]:
    return [str(each) for each in schema_findings(schema, "@")]


def with_field(field: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": field}}


A = "@.properties[a]"
EMBEDDED = {"x-kubernetes-embedded-resource": True}
NOT_EMPTY = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields"
KEYED = {
    "type": "array",
    "x-kubernetes-list-type": "map",
    "x-kubernetes-list-map-keys": ["k"],
    "items": {"type": "object", "properties": {"k": STRING}, "required": ["k"]},
}


@pytest.mark.parametrize(
    ("field", "findings"),
    [
        (STRING, []),
        ({}, [f"{A}.type: Required value: must not be empty for specified object fields"]),
        ({"type": "array"}, [f"{A}.items: Required value: must be specified"]),
        (
            {"type": "array", "items": {}},
            [f"{A}.items.type: Required value: must not be empty for specified array items"],
        ),
        ({"x-kubernetes-preserve-unknown-fields": True}, []),
        ({"x-kubernetes-int-or-string": True}, []),
        ({"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]}, []),
        (
            {"type": "array", "items": [STRING]},
            [f"{A}.items: Forbidden: items must be a schema object and not an array"],
        ),
        (
            {"type": "object", "properties": {"b": STRING}, "additionalProperties": STRING},
            [f"{A}.additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive"],
        ),
        (
            {"type": "string", **EMBEDDED},
            [
                f"{A}.properties: Required value: {NOT_EMPTY}",
                f'{A}.type: Invalid value: "string": must be object if x-kubernetes-embedded-resource is true',
            ],
        ),
        (
            {"type": "object", **EMBEDDED, "properties": {"kind": {"type": "integer"}}},
            [f'{A}.properties[kind].type: Invalid value: "integer": must be string'],
        ),
        (
            {"type": "string", "anyOf": [STRING]},
            [f"{A}.anyOf[0].type: Forbidden: must be empty to be structural"],
        ),
        (
            {"type": "object", "allOf": [{"additionalProperties": {"minLength": 1}}]},
            [f"{A}.allOf[0].additionalProperties: Forbidden: must be undefined to be structural"],
        ),
        ({"type": "string", "not": {"enum": ["x"]}}, []),
        (
            {"type": "object", "x-kubernetes-list-type": "atomic"},
            [f'{A}.type: Invalid value: "object": must be array if x-kubernetes-list-type is specified'],
        ),
        (
            {**KEYED, "x-kubernetes-list-map-keys": []},
            [f"{A}.x-kubernetes-list-map-keys: Required value: must not be empty if x-kubernetes-list-type is map"],
        ),
        (
            {**KEYED, "x-kubernetes-list-map-keys": ["k", "z"]},
            [f'{A}.x-kubernetes-list-map-keys: Invalid value: ["k","z"]: entries must all be names of item properties'],
        ),
        (KEYED, []),
        (
            {**KEYED, "items": {"type": "object", "properties": {"k": STRING}}},
            [
                f"{A}.items.properties[k].default: Required value: this property is in x-kubernetes-list-map-keys, "
                "so it must have a default or be a required property"
            ],
        ),
        ({"type": "integer", "default": 3}, []),
        (
            {"type": "integer", "default": "x"},
            [f'{A}.default: Invalid value: "string":  in body must be of type integer: "string"'],
        ),
        (
            {"type": "object", "properties": {"b": STRING}, "default": {"c": "x"}},
            [f'{A}.default: Invalid value: {{"c":"x"}}: must not have unknown fields'],
        ),
        (
            {"type": "object", "properties": {"b": STRING}, "required": ["b"], "default": {}},
            [f"{A}.default.b: Required value"],
        ),
        ({"type": "string", "pattern": "["}, None),
    ],
)
def test_schemas_of_a_field(field: dict[str, Any], findings: list[str] | None) -> None:
    found = told(with_field(field))
    if findings is None:
        [one] = found
        assert one.startswith(f'{A}.pattern: Invalid value: "[": must be a valid regular expression, but isn\'t: ')
    else:
        assert found == findings


@pytest.mark.parametrize(
    ("schema", "findings"),
    [
        ({}, ["@.type: Required value: must not be empty at the root"]),
        ({"type": "string"}, ['@.type: Invalid value: "string": must be object at the root']),
        (
            {"type": "object", "additionalProperties": True},
            ["@.additionalProperties: Forbidden: must not be used at the root"],
        ),
        (
            {"type": "object", "properties": {"kind": {"type": "string", "default": "W"}}},
            ["@.properties[kind].default: Forbidden: must not be set in top-level kind"],
        ),
        (
            {"type": "object", "properties": {"metadata": {"type": "object", "properties": {"labels": STRING}}}},
            [
                "@.properties[metadata]: Forbidden: must not specify anything other than name and generateName, "
                "but metadata is implicitly specified"
            ],
        ),
        ({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"name": STRING}}}}, []),
    ],
)
def test_schemas_of_the_root(schema: dict[str, Any], findings: list[str]) -> None:
    assert told(schema) == findings


@pytest.mark.parametrize(
    ("path", "finding"),
    [
        (".spec.s", ""),
        ("spec.s", "is an invalid path: expected [ or . but got: spec"),
        (".spec.z", "is an invalid path: does not refer to a valid field"),
        (".", "is an invalid path: unexpected end of JSON path"),
        (".spec.l[0]", "is an invalid path: array notation is not allowed"),
        (
            ".spec",
            "must point to a field of type string, boolean or integer. "
            "Enum string fields and strings with formats are allowed.",
        ),
    ],
)
def test_selectable_fields(path: str, finding: str) -> None:
    schema = {"type": "object", "properties": {"spec": {"type": "object", "properties": {"s": STRING}}}}
    found = [str(each) for each in selectable_findings([{"jsonPath": path}], schema, "f")]
    assert found == ([f'f[0].jsonPath: Invalid value: "{path}": {finding}'] if finding else [])


def test_what_will_not_do_what_it_seems_to() -> None:
    odd = {"type": "string", "format": "int32"}
    assert list(schema_warnings(with_field(odd))) == ['unrecognized format "int32"']
    assert list(schema_warnings(with_field({"type": "integer", "format": "int32"}))) == []
