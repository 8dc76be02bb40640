"""The CEL types of objects: of built-in kinds from their definitions, of custom ones from their OpenAPI schemas.

A struct's type is named after its definition, or after its place in the schema ("Thing.spec"). Which schema makes which
type: k8s.io/apiserver, pkg/cel/common/schemas.go. Names that are no identifiers of CEL are escaped as upstream has it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from kone.apimachinery import schema
from kone.apimachinery.cel_types import (
    BOOL,
    BYTES,
    DOUBLE,
    DURATION,
    DYN,
    INT,
    STRING,
    TIMESTAMP,
    Type,
    list_of,
    map_of,
    struct_type,
)
from kone.apimachinery.kinds import GVK
from kone.apimachinery.schema import GoType

_RESERVED = frozenset(
    (
        *("true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if"),
        *("import", "let", "loop", "package", "namespace", "return", "var", "void", "while"),
    )
)
_FORMATS = {"byte": BYTES, "date": TIMESTAMP, "date-time": TIMESTAMP, "duration": DURATION}
_SCALARS = {"string": STRING, "bool": BOOL, "bytes": BYTES, "float64": DOUBLE, "float32": DOUBLE}
_PREFIX = "kone.definition/"


def escaped(name: str) -> str | None:
    """A property's name in CEL: "__namespace__", "a__dash__b"; None where it cannot be named at all."""
    if name in _RESERVED:
        return f"__{name}__"
    if not re.fullmatch(r"[a-zA-Z_.\-/][a-zA-Z0-9_.\-/]*", name):
        return None
    for sign, word in (("__", "__underscores__"), (".", "__dot__"), ("-", "__dash__"), ("/", "__slash__")):
        name = name.replace(sign, word) if sign == "__" or sign in name else name
    return name


class SchemaStructs:
    """The structs of built-in definitions, and of the schemas that were added. cel_types.Structs."""

    def __init__(self) -> None:
        self._added: dict[str, dict[str, Type]] = {}

    def has(self, name: str) -> bool:
        return name in self._added or name.startswith(_PREFIX)

    def field(self, name: str, field: str) -> Type | None:
        if name in self._added:
            return self._added[name].get(field)
        found = schema.definition(name.removeprefix(_PREFIX)).fields
        for real, each in found.items():
            if escaped(real) == field:
                return _go_type(each.type)
        return None

    def of_kind(self, gvk: GVK) -> Type | None:
        """The type of a built-in kind's objects."""
        found = schema.definition_of(gvk)
        return struct_type(_PREFIX + found.name) if found is not None else None

    def add(self, name: str, found: Mapping[str, Any], *, resource: bool = False) -> Type:
        """The type of an OpenAPI schema's values, its structs named after `name`; `resource` adds what every object
        has."""
        if found.get("x-kubernetes-int-or-string"):
            return DYN
        kind = found.get("type", "")
        if kind == "array":
            items = found.get("items")
            return list_of(self.add(f"{name}.@idx", items)) if items else list_of(DYN)
        if kind == "object" or found.get("properties"):
            return self._object(name, found, resource=resource or bool(found.get("x-kubernetes-embedded-resource")))
        if kind == "string":
            return _FORMATS.get(found.get("format", ""), STRING)
        return {"boolean": BOOL, "integer": INT, "number": DOUBLE}.get(kind, DYN)

    def _object(self, name: str, found: Mapping[str, Any], *, resource: bool) -> Type:
        additional = found.get("additionalProperties")
        if isinstance(additional, Mapping):
            return map_of(STRING, self.add(f"{name}.@elem", additional))
        properties = found.get("properties") or {}
        if not properties and not resource:
            return DYN if found.get("x-kubernetes-preserve-unknown-fields") else struct_type(self._empty(name))
        fields: dict[str, Type] = {}
        self._added[name] = fields
        if resource:
            meta = struct_type(f"{_PREFIX}meta.v1.ObjectMeta")
            fields.update(apiVersion=STRING, kind=STRING, metadata=meta)
        for real, each in properties.items():
            shown = escaped(real)
            if shown is not None and not (resource and real == "metadata"):
                fields[shown] = self.add(f"{name}.{shown}", each)
        return struct_type(name)

    def _empty(self, name: str) -> str:
        self._added[name] = {}
        return name


def _go_type(go: GoType) -> Type:
    if go.kind in (schema.TIME, schema.MICRO_TIME):
        return TIMESTAMP
    if go.kind in _SCALARS:
        return _SCALARS[go.kind]
    if go.kind.startswith(("int", "uint")) and go.kind != schema.INT_OR_STRING:
        return INT
    if go.kind == "slice" and go.element is not None:
        return list_of(_go_type(go.element))
    if go.kind == "map" and go.element is not None:
        return map_of(STRING, _go_type(go.element))
    return struct_type(_PREFIX + go.struct) if go.struct else DYN
