"""How the fields of a kind are owned: which maps and lists are taken apart, which are one value, and what names a
list's elements. Server-side apply (typed.py, managedfields.py) knows kinds by this alone.

`Structure` is the protocol between schemas and apply. `built_in(gvk)` reads it from the generated schema,
`from_openapi(schema)` from a custom resource's structural schema (x-kubernetes-list-type, -list-map-keys, -map-type,
-preserve-unknown-fields), `CUSTOM` is an object of which only the metadata is known. A resource says its own in
`registry.resource.Resource.structure`. Rules: sigs.k8s.io/structured-merge-diff, schema.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, Literal

from kone.apimachinery import schema
from kone.apimachinery.kinds import GVK

Kind = Literal["scalar", "map", "list", "any"]


class Fields:
    """The declared fields of a map, made when first asked for: types may hold themselves. Ask by `find`."""

    def __init__(self, make: Callable[[str], Structure | None]) -> None:
        self._made: dict[str, Structure] = {}
        self._make = make

    def find(self, name: str) -> Structure | None:
        found = self._made.get(name)
        if found is None:
            found = self._make(name)
            if found is not None:
                self._made[name] = found
        return found


NO_FIELDS: Final = Fields(lambda name: None)


@dataclass(frozen=True, slots=True, eq=False)
class Structure:
    """One value. "any" takes its kind from the value: maps are granular then, lists atomic."""

    kind: Kind
    scalar: str = "untyped"
    """"string", "numeric", "boolean" or "untyped" (any of them)."""
    atomic: bool = False
    """Owned as one value, whatever is in it."""
    fields: Fields = field(default=NO_FIELDS)
    """The declared fields of a map."""
    element: Structure | None = None
    """Of a list's elements, or of a map's values that are not declared; None: a map has no others."""
    keys: tuple[str, ...] = ()
    """What names the elements of a granular list; () means that it is a set."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What a key is that an element leaves out."""

    def child(self, name: str) -> Structure | None:
        """The structure of a map's value."""
        return self.fields.find(name) or self.element


ANY: Final = Structure("any")
ANY_ATOMIC: Final = Structure("any", atomic=True)
_SCALAR: Final = Structure("scalar")
_SCALARS: Final = {
    "string": Structure("scalar", "string"),
    "numeric": Structure("scalar", "numeric"),
    "boolean": Structure("scalar", "boolean"),
}
_PROTOCOL: Final = frozenset(("core.v1.ContainerPort", "core.v1.ServicePort"))
"""Whose protocol is TCP where it is left out, also as a key (k8s.io/api: +default="TCP")."""


@cache
def built_in(gvk: GVK) -> Structure | None:
    """The structure of a built-in kind; None where there is none."""
    found = schema.definition_of(gvk)
    return None if found is None else _struct(found.name)


@cache
def _struct(identifier: str) -> Structure:
    found = schema.definition(identifier)

    def make(name: str) -> Structure | None:
        declared = found.fields.get(name)
        return None if declared is None else _field(declared)

    return Structure("map", atomic=found.atomic, fields=Fields(make))


def _field(declared: schema.Field) -> Structure:
    go_type = declared.type
    if go_type.kind == "slice":
        element = go_type.element
        assert element is not None
        granular = declared.list_type in ("set", "map")
        return Structure(
            "list",
            atomic=not granular,
            element=_type(element),
            keys=declared.map_keys,
            defaults=_key_defaults(element.struct, declared.map_keys) if declared.map_keys else {},
        )
    found = _type(go_type)
    if declared.atomic_map and found.kind == "map":
        return Structure("map", atomic=True, fields=found.fields, element=found.element)
    return found


def _type(go_type: schema.GoType) -> Structure:
    code = go_type.code
    if code == schema.STRUCT:
        return _struct(go_type.struct)
    if code == schema.STRING:
        return _SCALARS["string"]
    if code == schema.INTEGER:
        return _SCALARS["numeric"]
    if code == schema.BOOLEAN:
        return _SCALARS["boolean"]
    if go_type.kind == "slice":
        assert go_type.element is not None
        return Structure("list", atomic=True, element=_type(go_type.element))
    if go_type.kind == "map":
        assert go_type.element is not None
        return Structure("map", element=_type(go_type.element))
    if go_type.kind in schema.RAW:
        return ANY_ATOMIC
    return _SCALAR if go_type.kind in _PLAIN else ANY


_PLAIN: Final = frozenset(
    (schema.TIME, schema.MICRO_TIME, schema.QUANTITY, schema.INT_OR_STRING, "bytes", "float64"),
)


def _key_defaults(identifier: str, keys: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    fields = schema.definition(identifier).fields
    for key in keys:
        declared = fields[key]
        if key == "protocol" and identifier in _PROTOCOL:
            found[key] = "TCP"
        elif not declared.type.pointer and not declared.omitempty:
            found[key] = schema.zero_value(declared.type)
    return found


def _metadata() -> Structure:
    return _struct("meta.v1.ObjectMeta")


_TYPE_META: Final = ("apiVersion", "kind")


def _custom(make: Callable[[str], Structure | None], element: Structure | None) -> Structure:
    def root(name: str) -> Structure | None:
        if name == "metadata":
            return _metadata()
        return _SCALARS["string"] if name in _TYPE_META else make(name)

    return Structure("map", fields=Fields(root), element=element)


CUSTOM: Final = _custom(lambda name: None, ANY)
"""A custom resource without a schema."""


def custom(openapi: Mapping[str, Any]) -> Structure:
    """The structure of a custom resource whose structural schema is `openapi`: its root has Kubernetes' metadata."""
    found = from_openapi(openapi)
    return _custom(found.fields.find, found.element)


def from_openapi(openapi: Mapping[str, Any]) -> Structure:
    """The structure of a value by a structural schema (OpenAPI v3 with Kubernetes' extensions)."""
    kind = openapi.get("type")
    if openapi.get("x-kubernetes-int-or-string"):
        return _SCALAR
    if openapi.get("x-kubernetes-embedded-resource"):
        properties: Mapping[str, Any] = openapi.get("properties") or {}
        return _custom(lambda name: _property(properties, name), _others(openapi))
    if kind == "object":
        declared: Mapping[str, Any] = openapi.get("properties") or {}
        return Structure(
            "map",
            atomic=openapi.get("x-kubernetes-map-type") == "atomic",
            fields=Fields(lambda name: _property(declared, name)),
            element=_others(openapi),
        )
    if kind == "array":
        items: Mapping[str, Any] = openapi.get("items") or {}
        keys = tuple(openapi.get("x-kubernetes-list-map-keys") or ())
        item_properties: Mapping[str, Any] = items.get("properties") or {}
        return Structure(
            "list",
            atomic=openapi.get("x-kubernetes-list-type", "atomic") == "atomic",
            element=from_openapi(items),
            keys=keys,
            defaults={k: item_properties[k]["default"] for k in keys if "default" in item_properties.get(k, {})},
        )
    scalar = {"string": "string", "integer": "numeric", "number": "numeric", "boolean": "boolean"}.get(str(kind))
    return _SCALARS[scalar] if scalar else ANY


def _property(properties: Mapping[str, Any], name: str) -> Structure | None:
    found = properties.get(name)
    return None if found is None else from_openapi(found)


def _others(openapi: Mapping[str, Any]) -> Structure | None:
    """What a map's values are beside its declared properties."""
    more = openapi.get("additionalProperties")
    if isinstance(more, Mapping):
        return from_openapi(more)
    return ANY if more or openapi.get("x-kubernetes-preserve-unknown-fields") else None
