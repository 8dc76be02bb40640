"""Values against an OpenAPI v3 schema: every finding, in upstream's words and order.

Only what structural schemas may hold is known. Rules and texts: k8s.io/kube-openapi, pkg/validation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from kone.apimachinery.errors import (
    FieldError,
    go_value,
    invalid_value,
    not_supported,
    required,
    too_long,
    too_many,
    type_invalid,
)
from kone.apimachinery.go_regexp import compile_go
from kone.apimachinery.string_formats import FORMATS

Schema = Mapping[str, Any]
NOWHERE: Final = "<nil>"
"""The path of findings that upstream's library words without one."""
_INT_FORMATS: Final = {"int32": 31, "int64": 63}


def validate(value: Any, schema: Schema, path: str = "") -> list[FieldError]:
    """Every finding about the value; none where it is as the schema wants it."""
    if value is None and schema.get("nullable"):
        return []
    findings = _types(value, schema, path)
    findings += _combinations(value, schema, path)
    if isinstance(value, str):
        findings += _text(value, schema, path)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        findings += _number(value, schema, path)
    elif isinstance(value, list):
        findings += _items(value, schema, path)
    if "enum" in schema and not any(_equal(value, each) for each in schema["enum"]):
        findings.append(not_supported(path, value, [e if isinstance(e, str) else go_value(e) for e in schema["enum"]]))
    if isinstance(value, dict):
        findings += _fields(value, schema, path)
    return findings


def type_of(value: Any) -> str:
    """JSON's own name of the value's type; whole numbers are integers however they are written."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "integer" if value.is_integer() else "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def _equal(left: Any, right: Any) -> bool:
    return type_of(left) == type_of(right) and bool(left == right)


def _types(value: Any, schema: Schema, path: str) -> list[FieldError]:
    wanted = ("integer", "string") if schema.get("x-kubernetes-int-or-string") else (schema.get("type", ""),)
    if wanted == ("",):
        return []
    found = type_of(value)
    if found in wanted or (found == "integer" and "number" in wanted):
        text = schema.get("format", "")
        judge = FORMATS.get(text) if isinstance(value, str) else None
        if judge is not None and not judge(value):
            return [type_invalid(path, value, f"{path} in body must be of type {text}: {go_value(value)}")]
        return []
    return [type_invalid(path, found, f'{path} in body must be of type {",".join(wanted)}: "{found}"')]


def _combinations(value: Any, schema: Schema, path: str) -> list[FieldError]:
    findings: list[FieldError] = []
    if any_of := schema.get("anyOf"):
        first = _first_failure(value, any_of, path)
        if first is not None:
            findings += _unplaced(f'"{path}" must validate at least one schema (anyOf)')
            findings += first
    if one_of := schema.get("oneOf"):
        results = [validate(value, each, path) for each in one_of]
        valid = sum(not result for result in results)
        if valid != 1:
            why = f"Found {valid} valid alternatives" if valid else "Found none valid"
            findings += _unplaced(f'"{path}" must validate one and only one schema (oneOf). {why}')
            if not valid:
                findings += results[0]
    if all_of := schema.get("allOf"):
        results = [validate(value, each, path) for each in all_of]
        for result in results:
            findings += result
        valid = sum(not result for result in results)
        if valid != len(all_of):
            why = "" if valid else ". None validated"
            findings += _unplaced(f'"{path}" must validate all the schemas (allOf){why}')
    if (forbidden := schema.get("not")) is not None and not validate(value, forbidden, path):
        findings += _unplaced(f'"{path}" must not validate the schema (not)')
    return findings


def _first_failure(value: Any, schemas: Sequence[Schema], path: str) -> list[FieldError] | None:
    """The first schema's findings where none of them takes the value."""
    first: list[FieldError] | None = None
    for schema in schemas:
        findings = validate(value, schema, path)
        if not findings:
            return None
        first = first or findings
    return first


def _unplaced(text: str) -> list[FieldError]:
    return [invalid_value(NOWHERE, "", text)]


def _text(value: str, schema: Schema, path: str) -> list[FieldError]:
    findings = []
    if (longest := schema.get("maxLength")) is not None and len(value) > longest:
        findings.append(too_long(path, longest))
    if (shortest := schema.get("minLength")) is not None and len(value) < shortest:
        findings.append(invalid_value(path, value, f"{path} in body should be at least {shortest} chars long"))
    if text := schema.get("pattern"):
        try:
            matches = compile_go(text).search(value) is not None
        except ValueError:  # a definition that is older than the check of its patterns
            matches = True
        if not matches:
            findings.append(invalid_value(path, value, f"{path} in body should match '{text}'"))
    return findings


def _number(value: float, schema: Schema, path: str) -> list[FieldError]:
    findings = []
    kind, text = schema.get("type"), schema.get("format", "")
    bits = _INT_FORMATS.get(text)
    if kind == "integer" and not float(value).is_integer():
        findings += _unplaced(f"Checked value must be of type integer (default format) in {path}")
    elif bits is not None and not -(2**bits) <= value < 2**bits:
        findings += _unplaced(f"Checked value must be of type integer with format {text} in {path}")
    if (factor := schema.get("multipleOf")) and not _is_multiple(value, factor):
        findings.append(invalid_value(path, value, f"{path} in body should be a multiple of {go_value(factor)}"))
    most, least = schema.get("maximum"), schema.get("minimum")
    if most is not None and (value >= most if schema.get("exclusiveMaximum") else value > most):
        words = "less than" if schema.get("exclusiveMaximum") else "less than or equal to"
        findings.append(invalid_value(path, value, f"{path} in body should be {words} {go_value(most)}"))
    if least is not None and (value <= least if schema.get("exclusiveMinimum") else value < least):
        words = "greater than" if schema.get("exclusiveMinimum") else "greater than or equal to"
        findings.append(invalid_value(path, value, f"{path} in body should be {words} {go_value(least)}"))
    return findings


def _is_multiple(value: float, factor: float) -> bool:
    quotient = value / factor
    return abs(quotient - round(quotient)) < 1e-9


def _items(value: list[Any], schema: Schema, path: str) -> list[FieldError]:
    findings: list[FieldError] = []
    if isinstance(items := schema.get("items"), Mapping):
        for i, item in enumerate(value):
            findings += validate(item, items, f"{path}[{i}]")
    size = len(value)
    if (least := schema.get("minItems")) is not None and size < least:
        findings.append(invalid_value(path, size, f"{path} in body should have at least {least} items"))
    if (most := schema.get("maxItems")) is not None and size > most:
        findings.append(too_many(path, size, most))
    return findings


def _fields(value: dict[str, Any], schema: Schema, path: str) -> list[FieldError]:
    size = len(value)
    if (least := schema.get("minProperties")) is not None and size < least:
        return [invalid_value(path, size, f"{path} in body should have at least {least} properties")]
    if (most := schema.get("maxProperties")) is not None and size > most:
        return [too_many(path, size, most)]
    findings: list[FieldError] = []
    properties: Schema = schema.get("properties") or {}
    values = schema.get("additionalProperties")
    for name, item in value.items():
        below = properties.get(name)
        if below is None and isinstance(values, Mapping):
            below = values
        if below is not None:
            findings += validate(item, below, f"{path}.{name}" if path else name)
    for name in schema.get("required") or ():
        if name not in value:
            findings.append(required(f"{path}.{name}" if path else name))
    return findings
