"""The schema of a custom resource, as a tree that can be walked: what it prunes, defaults, and holds to be nothing.

A definition's openAPIV3Schema is read once; every write of an object walks it. Walks change objects in place: they are
given private copies. Rules: k8s.io/apiextensions-apiserver, pkg/apiserver/schema (structural schemas).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from kone.apimachinery import schema
from kone.apimachinery.errors import FieldError, duplicate, go_value, json_word
from kone.apimachinery.objects import Object, deep_copy

META_FIELDS: Final = ("apiVersion", "kind", "metadata")
NO_DEFAULT: Final[Any] = object()


@dataclass(frozen=True, slots=True)
class Structural:
    """One node. `additional` is the schema of values of a map, True where any value goes, None where it is no map."""

    raw: Mapping[str, Any]
    """The JSON schema of the node, for validation and publishing."""
    type: str = ""
    properties: Mapping[str, Structural] = field(default_factory=dict)
    items: Structural | None = None
    additional: Structural | bool | None = None
    nullable: bool = False
    preserve_unknown: bool = False
    embedded: bool = False
    int_or_string: bool = False
    list_type: str = "atomic"
    map_keys: tuple[str, ...] = ()
    map_type: str = "granular"
    default: Any = NO_DEFAULT

    @property
    def values(self) -> Structural | None:
        """The schema of a map's values, where it has one."""
        return self.additional if isinstance(self.additional, Structural) else None


def parse(raw: Mapping[str, Any]) -> Structural:
    """The tree of an openAPIV3Schema that has passed validation."""
    additional = raw.get("additionalProperties")
    items = raw.get("items")
    return Structural(
        raw=raw,
        type=str(raw.get("type", "")),
        properties={name: parse(each) for name, each in (raw.get("properties") or {}).items()},
        items=parse(items) if isinstance(items, Mapping) else None,
        additional=parse(additional) if isinstance(additional, Mapping) else additional,
        nullable=bool(raw.get("nullable")),
        preserve_unknown=bool(raw.get("x-kubernetes-preserve-unknown-fields")),
        embedded=bool(raw.get("x-kubernetes-embedded-resource")),
        int_or_string=bool(raw.get("x-kubernetes-int-or-string")),
        list_type=str(raw.get("x-kubernetes-list-type") or "atomic"),
        map_keys=tuple(raw.get("x-kubernetes-list-map-keys") or ()),
        map_type=str(raw.get("x-kubernetes-map-type") or "granular"),
        default=raw.get("default", NO_DEFAULT),
    )


def has_rules(node: Structural) -> bool:
    """Whether it or anything below has rules in CEL."""
    if node.raw.get("x-kubernetes-validations"):
        return True
    below = [*node.properties.values(), node.items, node.values]
    return any(has_rules(each) for each in below if each is not None)


# -- pruning ----------------------------------------------------------------------------------------------------------


def prune(obj: Object, root: Structural) -> list[str]:
    """Drop what the schema does not name, in place; the sorted paths of it, e.g. "spec.l[0].z"."""
    dropped: list[str] = []
    _prune_fields(obj, root, "", dropped, embedded=True, keep=root.preserve_unknown)
    return sorted(dropped)


def _prune(value: Any, node: Structural | None, path: str, dropped: list[str], *, keep: bool = False) -> None:
    """`keep`: unknown fields of this value stay, as those of something preserved; what is named is looked at still."""
    if isinstance(value, dict):
        embedded = node is not None and node.embedded
        _prune_fields(value, node, path, dropped, embedded=embedded, keep=keep or _preserves(node))
    elif isinstance(value, list):
        items = node.items if node is not None else None
        keeps = keep or _preserves(node)
        for i, item in enumerate(value):
            if items is not None or not keeps:
                _prune(item, items, f"{path}[{i}]", dropped, keep=keeps)


def _preserves(node: Structural | None) -> bool:
    return node is not None and node.preserve_unknown


def _prune_fields(
    value: Object, node: Structural | None, path: str, dropped: list[str], *, embedded: bool, keep: bool
) -> None:
    for name in list(value):
        if embedded and name in META_FIELDS:
            continue
        below = f"{path}.{name}" if path else name
        named = node.properties.get(name) if node is not None else None
        if named is not None:
            _prune(value[name], named, below, dropped)
        elif node is not None and node.additional is not None and node.additional is not False:
            _prune(value[name], node.values, below, dropped)
        elif not keep:
            del value[name]
            dropped.append(below)


# -- defaulting -------------------------------------------------------------------------------------------------------


def set_defaults(value: Any, node: Structural | None) -> None:
    """Fill in defaults, in place: where a field is missing, or null and not nullable."""
    if node is None:
        return
    if isinstance(value, dict):
        for name, prop in node.properties.items():
            if prop.default is not NO_DEFAULT and (name not in value or _is_no_null(value[name], prop)):
                value[name] = _copied(prop.default)
        values = node.values
        for name in value:
            below = node.properties.get(name)
            if below is None and values is not None:
                if _is_no_null(value[name], values) and values.default is not NO_DEFAULT:
                    value[name] = _copied(values.default)
                below = values
            set_defaults(value[name], below)
    elif isinstance(value, list) and node.items is not None:
        for i, item in enumerate(value):
            if _is_no_null(item, node.items) and node.items.default is not NO_DEFAULT:
                value[i] = _copied(node.items.default)
            set_defaults(value[i], node.items)


def drop_nulls(value: Any, node: Structural | None) -> None:
    """Drop, in place, nulls of fields that may not be null and have no default: they count as left out."""
    if node is None:
        return
    if isinstance(value, dict):
        for name in list(value):
            below = node.properties.get(name) or node.values
            if below is not None and _is_no_null(value[name], below):
                del value[name]
            else:
                drop_nulls(value[name], below)
    elif isinstance(value, list):
        for item in value:
            drop_nulls(item, node.items)


def _is_no_null(value: Any, node: Structural) -> bool:
    """Whether the value is null where that means nothing."""
    return value is None and not node.nullable


def _copied(value: Any) -> Any:
    return deep_copy(value) if isinstance(value, dict | list) else value


# -- embedded objects -------------------------------------------------------------------------------------------------


class MetadataError(Exception):
    """Metadata that cannot be decoded; the text is the finding, with its path for embedded objects."""


def decode_metadata(obj: Object, path: str = "") -> list[str]:
    """Decode the metadata of an object, in place; the paths of its unknown fields. Raises MetadataError."""
    given = obj.get("metadata")
    if given is None:
        obj.pop("metadata", None)
        return []
    below = f"{path}.metadata" if path else "metadata"
    if not isinstance(given, dict):
        text = f"json: cannot unmarshal {json_word(given)} into Go value of type v1.ObjectMeta"
        raise MetadataError(f"{below}: Invalid value: {go_value(given)}: {text}" if path else text)
    try:
        decoded, unknown = schema.decode_as(given, schema.definition("meta.v1.ObjectMeta"))
    except schema.DecodeError as error:
        raise MetadataError(f"{below}: Invalid value: {go_value(given)}: {error}" if path else str(error)) from None
    obj["metadata"] = decoded
    return [f"{below}{name}" if name.startswith("[") else f"{below}.{name}" for name in unknown]


def embedded_objects(value: Any, node: Structural | None, path: str = "") -> Iterator[tuple[Object, str]]:
    """Every embedded object below (not the root itself), with its path."""
    if node is None:
        return
    if isinstance(value, dict):
        for name, item in value.items():
            below = node.properties.get(name) or node.values
            where = f"{path}.{name}" if path else name
            if below is not None and below.embedded and isinstance(item, dict):
                yield item, where
            yield from embedded_objects(item, below, where)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            where = f"{path}[{i}]"
            if node.items is not None and node.items.embedded and isinstance(item, dict):
                yield item, where
            yield from embedded_objects(item, node.items, where)


# -- lists that are sets and maps -------------------------------------------------------------------------------------


def list_findings(value: Any, node: Structural | None, path: str = "") -> Iterator[FieldError]:
    """Duplicates in lists that are sets, or maps by keys."""
    if node is None:
        return
    if isinstance(value, dict):
        for name, item in value.items():
            below = node.properties.get(name) or node.values
            yield from list_findings(item, below, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        if node.list_type == "set":
            yield from _duplicates(value, path)
        elif node.list_type == "map":
            keys = [_key_of(item, node) for item in value]
            yield from _duplicates(keys, path)
        for i, item in enumerate(value):
            yield from list_findings(item, node.items, f"{path}[{i}]")


def _key_of(item: Any, node: Structural) -> Any:
    if not isinstance(item, dict):
        return item
    return {key: item[key] for key in node.map_keys if key in item}


def _duplicates(items: list[Any], path: str) -> Iterator[FieldError]:
    seen: set[str] = set()
    for i, item in enumerate(items):
        shown = repr(sorted(item.items()) if isinstance(item, dict) else item)
        if shown in seen:
            yield duplicate(f"{path}[{i}]", item)
        seen.add(shown)
