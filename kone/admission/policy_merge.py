"""What an ApplyConfiguration makes of an object: a structured merge by the kind's schema, without field owners.

Structs and maps are merged, lists of type map by their keys, sets united. What is atomic may not be touched: a policy
that means to set a part of it would drop the rest. Texts: sigs.k8s.io/structured-merge-diff and k8s.io/apiserver,
pkg/admission/plugin/policy/mutating/patch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kone.apimachinery.errors import go_quote
from kone.apimachinery.kinds import GVK
from kone.apimachinery.objects import Object
from kone.apimachinery.schema import Field, definition_of


class CannotMerge(Exception):
    """The configuration does not fit the kind."""


def merge(live: Object, patch: Mapping[str, Any], gvk: GVK) -> Object:
    """A new object; `live` is left alone. Raises CannotMerge."""
    found = definition_of(gvk)
    atomics: list[str] = []
    merged = _fields(live, patch, dict(found.fields) if found is not None else None, "", atomics)
    if atomics:
        text = f"may not mutate atomic arrays, maps or structs: {', '.join(atomics)}"
        raise CannotMerge(f"invalid ApplyConfiguration: {text}")
    return merged


def _fields(
    live: Mapping[str, Any], patch: Mapping[str, Any], fields: Mapping[str, Field] | None, path: str, atomics: list[str]
) -> Object:
    out = dict(live)
    for name, value in patch.items():
        at = f"{path}.{name}"
        if fields is None:
            out[name] = _untyped(live.get(name), value, at, atomics)
            continue
        field = fields.get(name)
        if field is None:
            text = f"{at}: field not declared in schema"
            raise CannotMerge(f"failed to convert patch object to typed object: {text}")
        out[name] = _typed(live.get(name), value, field, at, atomics)
    return out


def _typed(live: Any, value: Any, field: Field, at: str, atomics: list[str]) -> Any:
    go = field.type
    if value is None:
        return None
    if go.kind == "slice":
        return _list(live, _expected(value, list, "list", at), field, at, atomics)
    if go.kind == "map":
        found = _expected(value, dict, "map", at)
        if field.atomic_map:
            atomics.append(at)
            return found
        return {**(live or {}), **found}
    if go.struct and go.is_struct and not _written_by_itself(go.kind):
        found = _expected(value, dict, "map", at)
        definition = go.definition()
        if field.atomic_map or definition.atomic:
            atomics.append(at)
            return found
        return _fields(live or {}, found, definition.fields, at, atomics)
    return value


def _written_by_itself(kind: str) -> bool:
    """Time, Quantity and their like are scalars of JSON."""
    return kind != "struct"


def _expected(value: Any, wanted: type, word: str, at: str) -> Any:
    if not isinstance(value, wanted):
        text = f"{at}: expected {word}, got &{{{value}}}"
        raise CannotMerge(f"failed to convert patch object to typed object: {text}")
    return value


def _list(live: Any, value: list[Any], field: Field, at: str, atomics: list[str]) -> list[Any]:
    live = live or []
    if field.list_type == "set":
        return [*live, *(each for each in value if each not in live)]
    if field.list_type != "map":
        atomics.append(at)
        return value
    element = field.type.element
    definition = element.definition() if element is not None and element.struct else None
    out = list(live)
    for item in value:
        item = _expected(item, dict, "map", at)
        key = _key(item, field)
        shown = ",".join(f"{name}={_shown(item.get(name))}" for name in field.map_keys)
        place = next((i for i, each in enumerate(out) if _key(each, field) == key), None)
        fields = definition.fields if definition is not None else None
        merged = _fields(out[place] if place is not None else {}, item, fields, f"{at}[{shown}]", atomics)
        if place is None:
            out.append(merged)
        else:
            out[place] = merged
    return out


def _key(item: Mapping[str, Any], field: Field) -> tuple[Any, ...]:
    defaults = {"protocol": "TCP"}  # the one key of a list that has a default
    return tuple(item.get(name, defaults.get(name)) for name in field.map_keys)


def _shown(value: Any) -> str:
    return go_quote(value) if isinstance(value, str) else str(value)


def _untyped(live: Any, value: Any, at: str, atomics: list[str]) -> Any:
    if isinstance(value, dict):
        return _fields(live if isinstance(live, dict) else {}, value, None, at, atomics)
    if isinstance(value, list):
        atomics.append(at)
    return value
