"""The shape of every built-in kind, and decoding by it: what a body becomes on its way through upstream's Go types.

The table in generated/schema.json (see generate.py) is read when first asked and compiled a definition at a time,
when a body of that type first comes. `decode` walks a JSON object along its definition and builds the object that
upstream would store: unknown fields dropped and reported, nulls and empty omitempty values dropped, values that Go
always writes added (`status: {}`), quantities, times and base64 in their canonical form.

Two texts exist for a value of the wrong type: the JSON decoder's and that of the converter behind strategic merge
patches.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from importlib import resources
from typing import Any

from kone.apimachinery.errors import StatusError, bad_request, go_quote, json_word
from kone.apimachinery.kinds import GVK
from kone.apimachinery.objects import Object, deep_copy
from kone.apimachinery.quantity import FORMAT_ERROR, canonical_text
from kone.apimachinery.timestamps import ZERO_TIME, normal_micro_time, normal_time

# What a value is. The decode loop compares these numbers, most frequent first.
STRING, STRUCT, STRUCTS, INTEGER, STRING_MAP, BOOLEAN, STRINGS, QUANTITY_MAP, LIST, MAP, OTHER = range(11)

_TELLS_EMPTY_AMOUNTS = frozenset(("PersistentVolumeSpec",))
"""Whose maps of quantities stay, given empty: validation refuses them, and its text says that they were given."""

_INTEGERS = {"int32": 32, "int64": 64, "int": 64, "uint8": 8}


@dataclass(frozen=True, slots=True)
class GoType:
    """A type as Go spells it: `text` without the pointer, e.g. "[]v1.Container"."""

    code: int
    text: str
    kind: str
    """reflect.Kind's word: "string", "int32", "slice", "map", "struct" …; for special structs their identifier."""
    pointer: bool = False
    bits: int = 0
    struct: str = ""
    """The identifier of the struct, e.g. "core.v1.Container"."""
    element: GoType | None = None

    @property
    def is_struct(self) -> bool:
        """Structs are never empty to omitempty, those that write themselves (Time, Quantity …) included."""
        return self.code == STRUCT or self.kind in _SPECIAL

    def definition(self) -> Definition:
        return definition(self.struct)


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a definition, with what patches and server-side apply need to know of it."""

    name: str
    type: GoType
    omitempty: bool
    omitzero: bool
    required: bool
    number: int
    """In protobuf."""
    strategies: tuple[str, ...] = ()
    """patchStrategy: "merge", "replace", "retainKeys"."""
    merge_key: str = ""
    list_type: str = ""
    """"atomic", "set", "map" or "" (atomic)."""
    map_keys: tuple[str, ...] = ()
    atomic_map: bool = False
    parent: tuple[int, ...] = ()
    """Protobuf numbers of the embedded structs around it, which JSON does not show."""


@dataclass(slots=True)
class Definition:
    """One struct. `fields` are by JSON name, those of embedded structs included."""

    name: str
    fields: dict[str, Field]
    atomic: bool = False
    go_name: str = ""
    keeps_empty: bool = False
    """Whether an empty list stays one. Stored as protobuf, which cannot tell, it comes back as null."""
    compiled: dict[str, tuple[int, bool, GoType]] = field(default_factory=dict)
    """By JSON name: (code, whether empty values are kept, type)."""
    always: list[tuple[str, Any]] = field(default_factory=list)
    """What Go writes even where the body says nothing: (name, zero value)."""

    def zero(self) -> Object:
        """The struct's zero value as JSON."""
        return {name: deep_copy(value) for name, value in self.always}


class DecodeError(ValueError):
    """A value that does not fit. str() is the JSON decoder's text; `converter_text` the other one."""

    def __init__(self, text: str, converter_text: str = "") -> None:
        super().__init__(text)
        self.converter_text = converter_text or text


class _Mismatch(Exception):
    """A value of the wrong JSON type on its way up through the structs that hold it."""

    def __init__(self, found: Any, expected: GoType) -> None:
        self.found = found
        self.expected = expected
        self.struct = ""
        self.path: list[str] = []

    def error(self) -> DecodeError:
        expected = self.expected
        what = json_word(self.found)
        if type(self.found) in (int, float) and expected.bits:
            what = f"number {json.dumps(self.found)}"
        where = f"struct field {self.struct}.{'.'.join(reversed(self.path))}" if self.struct else "value"
        text = f"json: cannot unmarshal {what} into Go {where} of type {expected.text}"
        return DecodeError(text, self.converter_text())

    def converter_text(self) -> str:
        expected, found = self.expected, _go_kind(self.found)
        if expected.code in (STRUCT, OTHER):
            return f"cannot restore struct from: {found}"
        if expected.kind in ("slice", "map"):
            return f"cannot restore {expected.kind} from {found}"
        return f"unrecognized type: {expected.kind}"


def _go_kind(value: Any) -> str:
    match value:
        case str():
            return "string"
        case bool():
            return "bool"
        case int():
            return "int64"
        case float():
            return "float64"
        case list():
            return "slice"
    return "map"


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(resources.files(__package__).joinpath("generated/schema.json").read_bytes())
    return found


_definitions: dict[str, Definition] = {}


def definition(identifier: str) -> Definition:
    """The definition of a struct, e.g. "core.v1.PodSpec". Raises KeyError."""
    found = _definitions.get(identifier)
    return _definition(identifier) if found is None else found


def definition_of(gvk: GVK) -> Definition | None:
    """The definition of a built-in kind; None where there is none."""
    identifier = _table()["kinds"].get(f"{gvk.group}/{gvk.version}/{gvk.kind}")
    return definition(identifier) if identifier else None


def kinds() -> list[GVK]:
    """Every built-in kind, lists and option kinds included."""
    return [GVK(*name.split("/")) for name in _table()["kinds"]]


def _definition(identifier: str) -> Definition:
    fields = dict(_fields(identifier, ()))
    made = Definition(
        identifier,
        fields,
        identifier in _table()["atomic"],
        identifier.rpartition(".")[2],
        keeps_empty=identifier.startswith("apiextensions."),  # upstream stores CRDs as JSON
    )
    _definitions[identifier] = made  # before the zero values: types may hold themselves behind a pointer or list
    for name, each in fields.items():
        kept = each.type.pointer or not each.omitempty
        made.compiled[name] = (each.type.code, kept, each.type)
        if each.omitzero or (each.type.pointer and each.omitempty):
            continue
        if each.type.pointer or each.type.is_struct or not each.omitempty:
            made.always.append((name, None if each.type.pointer else zero_value(each.type)))
    return made


def _fields(identifier: str, parent: tuple[int, ...]) -> Iterator[tuple[str, Field]]:
    """The fields of a struct, embedded ones in their place."""
    for row in _table()["types"][identifier]:
        columns: list[Any] = [*row, *_PADDING[len(row) :]]
        name, type_text, flags, number, strategies, merge_key, list_type, map_keys = columns
        go_type = parse_type(type_text)
        if not name:
            yield from _fields(go_type.struct, (*parent, number) if number else parent)
            continue
        yield (
            name,
            Field(
                name,
                go_type,
                omitempty="o" in flags,
                omitzero="z" in flags,
                required="r" in flags,
                number=number,
                strategies=tuple(filter(None, strategies.split(","))),
                merge_key=merge_key,
                list_type=list_type,
                map_keys=tuple(filter(None, map_keys.split(","))),
                atomic_map="a" in flags,
                parent=parent,
            ),
        )


_PADDING = ("", "", "", 0, "", "", "", "")


@cache
def parse_type(text: str) -> GoType:
    """A type of the table, e.g. "*int32", "[]core.v1.Container", "core.v1.PullPolicy=string"."""
    if text.startswith("*"):
        inner = parse_type(text[1:])
        return GoType(inner.code, inner.text, inner.kind, True, inner.bits, inner.struct, inner.element)
    name, named, underlying = text.partition("=")
    if named and "[" not in name:
        inner = parse_type(underlying)
        shown = ".".join(name.split(".")[-2:])
        return GoType(inner.code, shown, inner.kind, inner.pointer, inner.bits, inner.struct, inner.element)
    if text == "[]uint8":
        return GoType(OTHER, "[]uint8", "bytes")
    if text.startswith("[]"):
        element = parse_type(text[2:])
        code = STRUCTS if element.code == STRUCT else STRINGS if element.code == STRING else LIST
        return GoType(code, f"[]{_shown(element)}", "slice", element=element)
    if text.startswith("map["):
        key, _, value = text[4:].partition("]")
        element = parse_type(value)
        code = STRING_MAP if element.code == STRING else QUANTITY_MAP if element.kind == QUANTITY else MAP
        return GoType(code, f"map[{_shown(parse_type(key))}]{_shown(element)}", "map", element=element)
    if text == "string":
        return GoType(STRING, "string", "string")
    if text == "bool":
        return GoType(BOOLEAN, "bool", "bool")
    if text in _INTEGERS:
        return GoType(INTEGER, text, text, bits=_INTEGERS[text])
    shown = ".".join(text.split(".")[-2:])
    if text == "float64":
        return GoType(OTHER, text, text)
    if text in _SPECIAL:
        return GoType(OTHER, shown, text)
    return GoType(STRUCT, shown, "struct", struct=text)


def _shown(element: GoType) -> str:
    return f"*{element.text}" if element.pointer else element.text


TIME, MICRO_TIME, QUANTITY, INT_OR_STRING = (
    "meta.v1.Time",
    "meta.v1.MicroTime",
    "resource.Quantity",
    "intstr.IntOrString",
)
RAW = frozenset(("runtime.RawExtension", "meta.v1.FieldsV1", "apiextensions.v1.JSON"))
SCHEMA_OR_ARRAY, SCHEMA_OR_BOOL, SCHEMA_OR_STRINGS = (
    "apiextensions.v1.JSONSchemaPropsOrArray",
    "apiextensions.v1.JSONSchemaPropsOrBool",
    "apiextensions.v1.JSONSchemaPropsOrStringArray",
)
_SPECIAL = RAW | {TIME, MICRO_TIME, QUANTITY, INT_OR_STRING, SCHEMA_OR_ARRAY, SCHEMA_OR_BOOL, SCHEMA_OR_STRINGS}
_ZEROS: Mapping[int, Any] = {STRING: "", INTEGER: 0, BOOLEAN: False}
_OTHER_ZEROS: Mapping[str, Any] = {QUANTITY: "0", INT_OR_STRING: 0, "float64": 0, SCHEMA_OR_BOOL: False}


def zero_value(go_type: GoType) -> Any:
    """What Go writes for a value that was never set."""
    if go_type.pointer:
        return None
    if go_type.code == STRUCT:
        return go_type.definition().zero()
    if go_type.code == OTHER:
        return _OTHER_ZEROS.get(go_type.kind)
    return _ZEROS.get(go_type.code)


def decode(obj: Object, gvk: GVK) -> tuple[Object, list[str]]:
    """(the object as upstream would write it back, paths of unknown fields in the body's order).

    The result shares nothing with `obj`. Kinds that are not built in come back as a copy. Raises DecodeError.
    """
    found = definition_of(gvk)
    if found is None:
        return deep_copy(obj), []
    return decode_as(obj, found)


def decode_as(obj: Object, found: Definition) -> tuple[Object, list[str]]:
    """As `decode`, by a definition, e.g. of a part of an object."""
    unknown: list[str] = []
    try:
        return _struct(found, obj, unknown), unknown
    except _Mismatch as mismatch:
        if isinstance(mismatch.found, dict | list) and type(mismatch.found) not in (dict, list):
            # A protected object of the store: its containers are subclasses, which the hot loop does not know.
            return decode_as(deep_copy(obj), found)
        raise mismatch.error() from None
    except ValueError as error:  # a quantity, a time or base64 that says itself what is wrong
        raise DecodeError(str(error)) from None


def strict_decode(obj: Object, gvk: GVK) -> tuple[Object, list[str]]:
    """As `decode`, with unknown fields as upstream words them and wrong types as its 400 answer.

    -> (object, ['unknown field "spec.foo"', …]). Raises StatusError.
    """
    try:
        decoded, unknown = decode(obj, gvk)
    except DecodeError as error:
        raise cannot_be_handled(gvk, str(error)) from None
    return decoded, [f"unknown field {go_quote(path)}" for path in unknown]


def cannot_be_handled(gvk: GVK, why: str) -> StatusError:
    """400 for a body of a known kind that cannot be decoded."""
    return bad_request(f'{gvk.kind} in version "{gvk.version}" cannot be handled as a {gvk.kind}: {why}')


def strict_error(gvk: GVK, findings: list[str]) -> StatusError:
    """400 of fieldValidation=Strict; `findings` as strict_decode returns them."""
    return cannot_be_handled(gvk, f"strict decoding error: {', '.join(findings)}")


def _prefix(unknown: list[str], start: int, head: str) -> None:
    """Put the step that leads to them in front of the paths found since `start`."""
    for i in range(start, len(unknown)):
        path = unknown[i]
        unknown[i] = head + path if path.startswith("[") else f"{head}.{path}"


def _struct(found: Definition, value: Mapping[str, Any], unknown: list[str]) -> Object:
    """The hot loop: one call a struct, no call for plain fields."""
    out: Object = {}
    compiled = found.compiled
    key = ""
    try:
        for key, item in value.items():
            row = compiled.get(key)
            if row is None:
                unknown.append(key)
                continue
            if item is None:
                continue
            code, kept, go_type = row
            kind = type(item)
            if code == STRING:
                if kind is not str:
                    raise _Mismatch(item, go_type)
                if item or kept:
                    out[key] = item
            elif code == STRUCT:
                if kind is not dict and not isinstance(item, dict):
                    raise _Mismatch(item, go_type)
                seen = len(unknown)
                out[key] = _struct(_definitions.get(go_type.struct) or go_type.definition(), item, unknown)
                if len(unknown) > seen:
                    _prefix(unknown, seen, key)
            elif code == STRUCTS:
                if kind is not list and not isinstance(item, list):
                    raise _Mismatch(item, go_type)
                if item:
                    out[key] = _structs(go_type, item, unknown, key)
                elif kept:
                    out[key] = [] if found.keeps_empty else None
            elif code == INTEGER:
                if kind is not int or not -(1 << (go_type.bits - 1)) <= item < 1 << (go_type.bits - 1):
                    raise _Mismatch(item, go_type)
                if item or kept:
                    out[key] = item
            elif code == STRING_MAP:
                if kind is not dict and not isinstance(item, dict):
                    raise _Mismatch(item, go_type)
                if not item:
                    if kept:
                        out[key] = {} if found.keeps_empty else None
                else:
                    out[key] = copied = dict(item)
                    for name, text in item.items():
                        if type(text) is not str:
                            copied[name] = _value(go_type.element, text, unknown) if text is not None else ""
            elif code == BOOLEAN:
                if kind is not bool:
                    raise _Mismatch(item, go_type)
                if item or kept:
                    out[key] = item
            elif code == STRINGS:
                if kind is not list and not isinstance(item, list):
                    raise _Mismatch(item, go_type)
                if not item:
                    if kept:
                        out[key] = [] if found.keeps_empty else None
                else:
                    out[key] = texts = list(item)
                    for i, text in enumerate(item):
                        if type(text) is not str:
                            texts[i] = _value(go_type.element, text, unknown) if text is not None else ""
            elif code == QUANTITY_MAP:
                if kind is not dict and not isinstance(item, dict):
                    raise _Mismatch(item, go_type)
                if not item:
                    if kept or found.go_name in _TELLS_EMPTY_AMOUNTS:
                        out[key] = {} if found.keeps_empty or not kept else None
                else:
                    out[key] = {
                        name: canonical_text(amount) if type(amount) is str else _quantity(amount)
                        for name, amount in item.items()
                    }
            else:
                decoded = _value(go_type, item, unknown, key)
                if code in (LIST, MAP) and not decoded:
                    if kept:
                        out[key] = decoded if found.keeps_empty else None
                elif decoded is not None and (kept or decoded or go_type.is_struct):
                    out[key] = decoded
    except _Mismatch as mismatch:
        if not mismatch.struct:
            mismatch.struct = found.go_name
        mismatch.path.append(key)
        raise
    for name, zero in found.always:
        if name not in out:
            out[name] = deep_copy(zero) if zero else {} if zero == {} else zero
    return out


def _structs(go_type: GoType, items: list[Any], unknown: list[str], key: str) -> list[Any]:
    element = go_type.element
    assert element is not None
    found = element.definition()
    out = []
    for i, item in enumerate(items):
        if type(item) is dict:
            seen = len(unknown)
            out.append(_struct(found, item, unknown))
            if len(unknown) > seen:
                _prefix(unknown, seen, f"{key}[{i}]")
        elif item is None:
            out.append(zero_value(element))
        else:
            raise _Mismatch(item, element)
    return out


def _value(go_type: GoType | None, item: Any, unknown: list[str], key: str = "") -> Any:
    """A value of any type, without the short cuts of the hot loop. `key` leads to it, for unknown fields below."""
    assert go_type is not None
    if item is None:
        # A null among bytes is nothing in Go, and empty once it has been stored.
        return "" if go_type.kind == "bytes" else zero_value(go_type)
    code, kind = go_type.code, type(item)
    if code == OTHER:
        return _OTHERS.get(go_type.kind, _raw)(item, go_type)
    expected: type = {STRING: str, BOOLEAN: bool, INTEGER: int, STRUCT: dict}.get(code) or (
        list if go_type.kind == "slice" else dict
    )
    if kind is not expected:
        raise _Mismatch(item, go_type)
    if code == STRUCT:
        seen = len(unknown)
        out = _struct(go_type.definition(), item, unknown)
        if key and len(unknown) > seen:
            _prefix(unknown, seen, key)
        return out
    if code == INTEGER and not -(1 << (go_type.bits - 1)) <= item < 1 << (go_type.bits - 1):
        raise _Mismatch(item, go_type)
    if kind is list:
        return [_value(go_type.element, each, unknown, f"{key}[{i}]") for i, each in enumerate(item)]
    if kind is dict:
        return {name: _value(go_type.element, each, unknown, f"{key}.{name}") for name, each in item.items()}
    return item


def _quantity(item: Any, _: GoType | None = None) -> str:
    if item is None:
        return "0"
    if type(item) is str:
        return canonical_text(item)
    if type(item) in (int, float):
        return canonical_text(json.dumps(item))
    raise ValueError(FORMAT_ERROR)


_TEXT = GoType(STRING, "string", "string")
_INT32 = GoType(INTEGER, "int32", "int32", bits=32)


def _time(item: Any, go_type: GoType) -> str | None:
    if type(item) is not str:
        raise _Mismatch(item, _TEXT)
    text = normal_time(item) if go_type.kind == TIME else normal_micro_time(item)
    return None if text[:19] == ZERO_TIME[:19] and not go_type.pointer else text


def _int_or_string(item: Any, _: GoType) -> int | str:
    if type(item) is str:
        return item
    if type(item) is not int or not -(2**31) <= item < 2**31:
        raise _Mismatch(item, _INT32)
    return item


def _bytes(item: Any, go_type: GoType) -> str:
    if type(item) is not str:
        raise _Mismatch(item, go_type)
    plain = item.replace("\n", "").replace("\r", "")
    if not _BASE64.fullmatch(plain):
        raise ValueError(f"illegal base64 data at input byte {_first_bad_base64(item)}")
    # The last digit may carry bits that belong to no byte: upstream writes them back as zeros.
    return base64.b64encode(base64.b64decode(plain)).decode() if plain.endswith("=") else plain


_BASE64 = re.compile("(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")


def _first_bad_base64(text: str) -> int:
    """Where Go's base64.StdEncoding stops, for text that it refuses."""
    data = text.encode(errors="surrogatepass")
    digits = 0
    for i, byte in enumerate(data):
        if byte in b"\r\n":
            continue
        if re.match(rb"[A-Za-z0-9+/]", data[i : i + 1]):
            digits += 1
            continue
        if byte != ord("=") or digits % 4 < 2:
            return i
        following = [j for j in range(i + 1, len(data)) if data[j] not in b"\r\n"]
        if digits % 4 == 2:
            if not following:
                return len(data)
            second = following.pop(0)
            if data[second] != ord("="):
                return second - 1
        return following[0] if following else len(data)
    return len(data) - digits % 4


def _float(item: Any, go_type: GoType) -> int | float:
    if type(item) is int:
        return item
    if type(item) is not float:
        raise _Mismatch(item, go_type)
    return int(item) if item.is_integer() and abs(item) < 1e21 else item


def _raw(item: Any, _: GoType) -> Any:
    return deep_copy(item)


_SCHEMA = GoType(STRUCT, "v1.JSONSchemaProps", "struct", struct="apiextensions.v1.JSONSchemaProps")


def _schema_or(item: Any, go_type: GoType) -> Any:
    """JSONSchemaPropsOr…: read by upstream with Go's lenient decoder, which reports no unknown fields."""
    if type(item) is dict:
        return _value(_SCHEMA, item, [])
    if go_type.kind == SCHEMA_OR_BOOL:
        if type(item) is bool:
            return item
        raise ValueError("boolean or JSON schema expected")
    if type(item) is list and item:
        element = _SCHEMA if go_type.kind == SCHEMA_OR_ARRAY else _TEXT
        return [_value(element, each, []) for each in item]
    return None


_OTHERS: Mapping[str, Any] = {
    TIME: _time,
    MICRO_TIME: _time,
    QUANTITY: _quantity,
    INT_OR_STRING: _int_or_string,
    "bytes": _bytes,
    "float64": _float,
    SCHEMA_OR_ARRAY: _schema_or,
    SCHEMA_OR_BOOL: _schema_or,
    SCHEMA_OR_STRINGS: _schema_or,
}
