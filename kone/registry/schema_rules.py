"""What the schema of a custom resource may say: it must be structural, so that pruning and defaulting mean one thing.

Two readers go through it, as upstream's do: one holds it to be structural, the other looks at each keyword. Defaults
are judged last, by the schema around them, and only where it is sound. Rules and texts: k8s.io/apiextensions-apiserver,
pkg/apiserver/schema and pkg/apis/apiextensions/validation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from kone.apimachinery import structural_schema, value_validation
from kone.apimachinery.errors import (
    FieldError,
    duplicate,
    forbidden_field,
    invalid_value,
    not_supported,
    required,
    too_many,
)
from kone.apimachinery.go_regexp import compile_go
from kone.apimachinery.objects import Object, deep_copy
from kone.apimachinery.string_formats import FORMATS
from kone.apimachinery.structural_schema import META_FIELDS, parse
from kone.registry.rules import Errors

Schema = Mapping[str, Any]

MAX_SELECTABLE_FIELDS: Final = 8
_TYPES: Final = ("array", "boolean", "integer", "number", "object", "string")
_INT_OR_STRING: Final = [{"type": "integer"}, {"type": "string"}]
_SELECTABLE: Final = (
    "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed."
)
_ROOT, _ITEM, _FIELD = "root", "item", "field"
_UNTYPED: Final = {
    _ROOT: "must not be empty at the root",
    _ITEM: "must not be empty for specified array items",
    _FIELD: "must not be empty for specified object fields",
}
_NOT_IN_LOGIC: Final = (
    ("type", "must be empty to be structural"),
    ("additionalProperties", "must be undefined to be structural"),
    ("default", "must be undefined to be structural"),
    ("title", "must be empty to be structural"),
    ("description", "must be empty to be structural"),
    ("nullable", "must be false to be structural"),
    ("x-kubernetes-preserve-unknown-fields", "must be false to be structural"),
    ("x-kubernetes-embedded-resource", "must be false to be structural"),
    ("x-kubernetes-int-or-string", "must be false to be structural"),
    ("x-kubernetes-list-map-keys", "must be empty to be structural"),
    ("x-kubernetes-list-type", "must be undefined to be structural"),
    ("x-kubernetes-map-type", "must be undefined to be structural"),
    ("x-kubernetes-validations", "must be empty to be structural"),
)
_UNSUPPORTED: Final = (
    "id",
    "additionalItems",
    "patternProperties",
    "definitions",
    "dependencies",
    "$ref",
)
_NUMBER_FORMATS: Final[Mapping[str, frozenset[str]]] = {
    "integer": frozenset(("int32", "int64")),
    "number": frozenset(("float", "double")),
    "string": frozenset(FORMATS),
}


def schema_findings(schema: Schema, path: str, before: Schema | None = None) -> Errors:
    """Everything that is wrong with the schema of a version, at `path`; `before` is what it was, if it was there."""
    findings: Errors = []
    if not _has_lists_of_items(schema):
        findings += sorted(_structure(schema, path, _ROOT), key=str)
    keywords: Errors = []
    _keywords(schema, path, keywords, root=True)
    findings += keywords
    root = parse(schema) if not findings else None
    if root is not None and structural_schema.has_rules(root):
        from kone.registry.custom_rules import rule_findings  # CEL is imported when the first rule comes

        findings += rule_findings(root, path, unchanged=schema == before)
    return findings or _defaults(schema, path, inside_metadata=False, root=True)


def _has_lists_of_items(schema: Schema) -> bool:
    """Whether it could not even be read as a structure."""
    if isinstance(schema.get("items"), list):
        return True
    return any(_has_lists_of_items(below) for _, below in _below(schema))


def _below(schema: Schema) -> Iterable[tuple[str, Schema]]:
    """The schemas of what a value may hold, each with the rest of its path."""
    if isinstance(items := schema.get("items"), Mapping):
        yield ".items", items
    for name, each in (schema.get("properties") or {}).items():
        yield f".properties[{name}]", each
    if isinstance(values := schema.get("additionalProperties"), Mapping):
        yield ".additionalProperties", values


# -- structure --------------------------------------------------------------------------------------------------------


def _structure(schema: Schema, path: str, level: str) -> Errors:
    findings: Errors = []
    kind = schema.get("type", "")
    properties = schema.get("properties") or {}
    embedded = bool(schema.get("x-kubernetes-embedded-resource"))
    preserves = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    either = bool(schema.get("x-kubernetes-int-or-string"))
    if kind == "array" and schema.get("items") is None:
        findings.append(required(f"{path}.items", "must be specified"))
    for step, below in _below(schema):
        findings += _structure(below, path + step, _ITEM if step == ".items" else _FIELD)
    if schema.get("additionalProperties") is not None and level == _ROOT:
        findings.append(forbidden_field(f"{path}.additionalProperties", "must not be used at the root"))
    if either and preserves:
        why = "must be false if x-kubernetes-int-or-string is true"
        findings.append(invalid_value(f"{path}.x-kubernetes-preserve-unknown-fields", True, why))
    if either and embedded:
        why = "must be false if x-kubernetes-int-or-string is true"
        findings.append(invalid_value(f"{path}.x-kubernetes-embedded-resource", True, why))
    findings += _logic(schema, path, may_name_types=either)
    if embedded and kind != "object":
        why = "must be object if x-kubernetes-embedded-resource is true"
        findings.append(invalid_value(f"{path}.type", kind, why) if kind else required(f"{path}.type", why))
    elif not kind and not either and not preserves:
        findings.append(required(f"{path}.type", _UNTYPED[level]))
    if embedded and schema.get("additionalProperties") is not None:
        why = "must not be used if x-kubernetes-embedded-resource is set"
        findings.append(forbidden_field(f"{path}.additionalProperties", why))
    if level == _ROOT and kind and kind != "object":
        findings.append(invalid_value(f"{path}.type", kind, "must be object at the root"))
    if level == _ROOT or embedded:
        for name, wanted in (("kind", "string"), ("apiVersion", "string"), ("metadata", "object")):
            found = (properties.get(name) or {}).get("type", "") if name in properties else wanted
            if found != wanted:
                findings.append(invalid_value(f"{path}.properties[{name}].type", found, f"must be {wanted}"))
    if level == _ROOT and "metadata" in properties and not _restricts_names_only(properties["metadata"]):
        why = "must not specify anything other than name and generateName, but metadata is implicitly specified"
        findings.append(forbidden_field(f"{path}.properties[metadata]", why))
    if embedded and not preserves and not properties:
        why = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields"
        findings.append(required(f"{path}.properties", why))
    return findings


def _restricts_names_only(metadata: Schema) -> bool:
    rest = {key for key, value in metadata.items() if value} - {"type", "properties", "default"}
    return not rest and set(metadata.get("properties") or ()) <= {"name", "generateName"}


def _logic(schema: Schema, path: str, *, may_name_types: bool) -> Errors:
    """What stands in allOf, anyOf, oneOf and not: rules on values, and nothing that gives structure."""
    findings: Errors = []
    for word in ("anyOf", "allOf", "oneOf"):
        for i, each in enumerate(schema.get(word) or ()):
            if word == "anyOf" and may_name_types and schema["anyOf"] == _INT_OR_STRING:
                break
            first = word == "allOf" and i == 0 and may_name_types and each.get("anyOf") == _INT_OR_STRING
            findings += _nested({**each, "anyOf": None} if first else each, f"{path}.{word}[{i}]")
    if (each := schema.get("not")) is not None:
        findings += _nested(each, f"{path}.not")
    if pattern := schema.get("pattern"):
        try:
            compile_go(pattern)
        except ValueError as error:
            why = f"must be a valid regular expression, but isn't: {error}"
            findings.append(invalid_value(f"{path}.pattern", pattern, why))
    return findings


def _nested(schema: Schema, path: str) -> Errors:
    findings = _logic(schema, path, may_name_types=False)
    for step, below in _below(schema):
        if step != ".additionalProperties":
            findings += _nested(below, path + step)
    for word, why in _NOT_IN_LOGIC:
        value = schema.get(word)
        if value if why.endswith(("empty to be structural", "false to be structural")) else value is not None:
            findings.append(forbidden_field(f"{path}.{word}", why))
    if "metadata" in (schema.get("properties") or {}):
        findings.append(forbidden_field(f"{path}.properties[metadata]", "must not be specified in a nested context"))
    return findings


# -- keywords ---------------------------------------------------------------------------------------------------------


def _keywords(
    schema: Schema, path: str, findings: Errors, *, root: bool = False, defaults: str | None = None, meta: bool = False
) -> None:
    """Each keyword by itself. `defaults` says why none may be set here, `meta` that this is metadata's schema."""
    kind = schema.get("type", "")
    if kind and kind not in _TYPES and kind != "null":
        findings.append(not_supported(f"{path}.type", kind, _TYPES))
    if schema.get("default") is not None and defaults is not None:
        findings.append(forbidden_field(f"{path}.default", f"must not be set {defaults}".strip()))
    for word in _UNSUPPORTED:
        if schema.get(word):
            findings.append(forbidden_field(f"{path}.{word}", f"{word} is not supported"))
    if kind == "null":
        why = "type cannot be set to null, use nullable as an alternative"
        findings.append(forbidden_field(f"{path}.type", why))
    if isinstance(schema.get("items"), list):
        findings.append(forbidden_field(f"{path}.items", "items must be a schema object and not an array"))
    if meta and schema.get("x-kubernetes-embedded-resource"):
        findings.append(
            forbidden_field(f"{path}.x-kubernetes-embedded-resource", "must not be used inside of resource meta")
        )
    if schema.get("uniqueItems"):
        why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic"
        findings.append(forbidden_field(f"{path}.uniqueItems", why))
    values = schema.get("additionalProperties")
    properties: Mapping[str, Schema] = schema.get("properties") or {}
    if values not in (None, True) and properties:
        why = "additionalProperties and properties are mutual exclusive"
        findings.append(forbidden_field(f"{path}.additionalProperties", why))
    if isinstance(values, Mapping):
        why_not = "inside additionalProperties applying to object metadata" if meta else defaults
        _keywords(values, f"{path}.additionalProperties", findings, defaults=why_not, meta=meta)
    for name, below in properties.items():
        inside, why_not = meta, defaults
        if name in META_FIELDS and (root or schema.get("x-kubernetes-embedded-resource")):
            inside, why_not = True, f"in top-level {name}" if root else defaults
        _keywords(below, f"{path}.properties[{name}]", findings, defaults=why_not, meta=inside)
    if (each := schema.get("not")) is not None:
        _keywords(each, f"{path}.not", findings, defaults=defaults, meta=meta)
    for word in ("allOf", "oneOf", "anyOf"):
        for i, each in enumerate(schema.get(word) or ()):
            _keywords(each, f"{path}.{word}[{i}]", findings, defaults=defaults, meta=meta)
    if isinstance(items := schema.get("items"), Mapping):
        _keywords(items, f"{path}.items", findings, defaults=defaults, meta=meta)
    if schema.get("x-kubernetes-preserve-unknown-fields") is False:
        word = "x-kubernetes-preserve-unknown-fields"
        findings.append(invalid_value(f"{path}.{word}", False, "must be true or undefined"))
    _map_type(schema, path, findings)
    _list_type(schema, path, findings)


def _of_type(schema: Schema, path: str, wanted: str, word: str) -> Errors:
    kind, why = schema.get("type", ""), f"must be {wanted} if {word} is specified"
    if kind == wanted:
        return []
    return [invalid_value(f"{path}.type", kind, why) if kind else required(f"{path}.type", why)]


def _map_type(schema: Schema, path: str, findings: Errors) -> None:
    word = "x-kubernetes-map-type"
    if (value := schema.get(word)) is None:
        return
    findings += _of_type(schema, path, "object", word)
    if value not in ("atomic", "granular"):
        findings.append(not_supported(f"{path}.{word}", value, ("atomic", "granular")))


def _list_type(schema: Schema, path: str, findings: Errors) -> None:
    word, keys_word = "x-kubernetes-list-type", "x-kubernetes-list-map-keys"
    value, keys = schema.get(word), schema.get(keys_word) or []
    items = schema.get("items") if isinstance(schema.get("items"), Mapping) else None
    if value is not None:
        of_type = _of_type(schema, path, "array", word)
        findings += of_type
        if not of_type and value == "set" and items is not None:
            _set_items(items, path, findings)
        if value not in ("atomic", "set", "map"):
            findings.append(not_supported(f"{path}.{word}", value, ("atomic", "set", "map")))
    if keys and value != "map":
        why = f"must be map if {keys_word} is non-empty"
        findings.append(
            required(f"{path}.{word}", why) if value is None else invalid_value(f"{path}.{word}", value, why)
        )
    if value == "map":
        if not keys:
            findings.append(required(f"{path}.{keys_word}", f"must not be empty if {word} is map"))
        _map_items(schema, items, keys, path, findings)
    if items is not None and value in ("set", "map") and items.get("nullable"):
        findings.append(forbidden_field(f"{path}.items.nullable", f"cannot be nullable when {word} is {value}"))
    if items is not None and value == "map":
        for key in keys:
            _key_is_always_there(items, key, f"{path}.items.properties[{key}]", findings)


def _set_items(items: Schema, path: str, findings: Errors) -> None:
    why = "must be atomic as item of a list with x-kubernetes-list-type=set"
    inner = items.get("x-kubernetes-list-type")
    if items.get("type") == "array" and inner not in (None, "atomic"):
        findings.append(invalid_value(f"{path}.items.x-kubernetes-list-type", inner, why))
    if items.get("type") == "object" and items.get("x-kubernetes-map-type") != "atomic":
        findings.append(invalid_value(f"{path}.items.x-kubernetes-map-type", inner, why))


def _map_items(schema: Schema, items: Schema | None, keys: Sequence[str], path: str, findings: Errors) -> None:
    word = "x-kubernetes-list-type"
    if schema.get("items") is None:
        findings.append(required(f"{path}.items", f"must have a schema if {word} is map"))
    if items is None:
        return
    if items.get("type") != "object":
        why = f"must be object if parent array's {word} is map"
        findings.append(invalid_value(f"{path}.items.type", items.get("type", ""), why))
        return
    keys_path = f"{path}.x-kubernetes-list-map-keys"
    properties = items.get("properties") or {}
    seen: set[str] = set()
    for key in keys:
        if key not in properties:
            findings.append(invalid_value(keys_path, list(keys), "entries must all be names of item properties"))
        elif properties[key].get("type") in ("array", "object"):
            why = f"must be a scalar type if parent array's {word} is map"
            findings.append(invalid_value(f"{path}.items.properties[{key}].type", items["type"], why))
        if key in seen:
            findings.append(invalid_value(keys_path, list(keys), "must not contain duplicate entries"))
        seen.add(key)


def _key_is_always_there(items: Schema, key: str, path: str, findings: Errors) -> None:
    each = (items.get("properties") or {}).get(key)
    if each is None:
        return
    why = "this property is in x-kubernetes-list-map-keys, so it"
    if key not in (items.get("required") or ()) and each.get("default") is None:
        findings.append(required(f"{path}.default", f"{why} must have a default or be a required property"))
    if each.get("nullable"):
        findings.append(forbidden_field(f"{path}.nullable", f"{why} cannot be nullable"))


# -- defaults ---------------------------------------------------------------------------------------------------------


def _defaults(schema: Schema, path: str, *, inside_metadata: bool, root: bool = False) -> Errors:
    """Each default must be what the schema around it takes, and name nothing that would be pruned."""
    findings: Errors = []
    embedded = bool(schema.get("x-kubernetes-embedded-resource"))
    inside_metadata = inside_metadata and not embedded
    if (value := schema.get("default")) is not None:
        findings += _default(schema, value, f"{path}.default", embedded=embedded or root, inside=inside_metadata)
    if isinstance(items := schema.get("items"), Mapping):
        findings += _defaults(items, f"{path}.items", inside_metadata=inside_metadata)
    for name, below in (schema.get("properties") or {}).items():
        inside = inside_metadata or (embedded and name in META_FIELDS)
        findings += _defaults(below, f"{path}.properties[{name}]", inside_metadata=inside)
    return findings


def _default(schema: Schema, value: Any, path: str, *, embedded: bool, inside: bool) -> Errors:
    if not inside and isinstance(value, dict | list):
        wrapped = {"value": deep_copy(value)}
        holder = parse({"type": "object", "properties": {"value": schema}})
        structural_schema.prune(wrapped, holder)
        if wrapped["value"] != value:
            return [invalid_value(path, value, "must not have unknown fields")]
    if embedded and isinstance(value, dict):
        missing = [required(f"{path}.{name}") for name in ("apiVersion", "kind") if not value.get(name)]
        if missing:
            return missing
    # Upstream does not hold a default to x-kubernetes-int-or-string, only what is written.
    rules = {key: rule for key, rule in schema.items() if key != "x-kubernetes-int-or-string"}
    findings = value_validation.validate(value, rules)
    node = parse(schema)
    if not findings and structural_schema.has_rules(node):
        from kone.registry import custom_rules

        compiled = custom_rules.compiled(node, root=False)
        findings = custom_rules.value_findings(compiled, value) if compiled is not None else []
    return [_placed(each, path) for each in findings]


def prune_embedded_defaults(schema: Object) -> None:
    """Drop, in place, what the metadata of objects embedded in defaults does not know, as reading them would."""
    if schema.get("default") is not None:
        holder = parse({"type": "object", "properties": {"value": schema}})
        for embedded, path in structural_schema.embedded_objects({"value": schema["default"]}, holder):
            try:
                structural_schema.decode_metadata(embedded, path)
            except structural_schema.MetadataError:
                continue  # which is a finding
    below = [*(schema.get("properties") or {}).values(), schema.get("items"), schema.get("additionalProperties")]
    for each in below:
        if isinstance(each, dict):
            prune_embedded_defaults(each)


def _placed(finding: FieldError, path: str) -> FieldError:
    """A finding about a part of a default, told at the default's place."""
    below = "" if finding.field in ("", value_validation.NOWHERE) else f".{finding.field}"
    return FieldError(finding.kind, path + below, finding.detail, finding.value)


# -- selectable fields ------------------------------------------------------------------------------------------------


class PathError(ValueError):
    """A path that leads to no field of a schema."""


def selectable_findings(fields: Sequence[Mapping[str, Any]], schema: Schema, path: str) -> Errors:
    """Selectable fields are up to eight paths of plain fields that hold texts, booleans or integers."""
    findings: Errors = []
    seen: set[str] = set()
    for i, each in enumerate(fields):
        text, at = each.get("jsonPath", ""), f"{path}[{i}].jsonPath"
        if not text:
            findings.append(required(at))
            continue
        try:
            found = _schema_at(text, schema)
        except PathError as error:
            findings.append(invalid_value(at, text, f"is an invalid path: {error}"))
            continue
        if text.startswith(".metadata."):
            findings.append(invalid_value(at, text, "must not point to fields in metadata"))
        if found.get("type") not in ("string", "boolean", "integer"):
            findings.append(invalid_value(at, text, _SELECTABLE))
        if text in seen:
            findings.append(duplicate(at, text))
        seen.add(text)
    if len(seen) > MAX_SELECTABLE_FIELDS:
        findings.append(too_many(path, len(seen), MAX_SELECTABLE_FIELDS))
    return findings


def _schema_at(text: str, schema: Schema) -> Schema:
    """The schema of the field that a path of plain names leads to. Raises PathError."""
    if not text.startswith((".", "[")):
        raise PathError(f"expected [ or . but got: {re.split(r'[.[]', text)[0]}")
    if "[" in text:
        raise PathError("array notation is not allowed")
    names = text.split(".")[1:]
    if names == [""] or "" in names:
        raise PathError("unexpected end of JSON path")
    found = schema
    for name in names:
        below = (found.get("properties") or {}).get(name)
        if below is None:
            raise PathError("does not refer to a valid field")
        found = below
    return found


# -- warnings ---------------------------------------------------------------------------------------------------------


def schema_warnings(schema: Schema) -> Iterable[str]:
    """What is taken, but will not do what it seems to."""
    text = schema.get("format", "")
    if text and text not in _NUMBER_FORMATS.get(schema.get("type", ""), ()):
        yield f'unrecognized format "{text}"'
    items = schema.get("items")
    if schema.get("x-kubernetes-list-type") == "set" and isinstance(items, Mapping):
        kind = items.get("type", "")
        if kind in ("object", "array"):
            yield (
                f'x-kubernetes-list-type: set for items of type "{kind}" is not supported by server-side apply or CEL '
                "validation rules"
            )
    for _, below in _below(schema):
        yield from schema_warnings(below)
