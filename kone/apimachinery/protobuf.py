"""Kubernetes' protobuf: bodies of content type application/vnd.kubernetes.protobuf, to and from JSON objects.

A body is the four bytes "k8s\\x00" and a runtime.Unknown message: apiVersion, kind and the object's own message.
Field numbers and types come from the schema's table, so JSON and protobuf have one truth, and one converter serves
every kind. Only what the wire does not say is dropped while reading (empty values that Go's JSON would omit);
`schema.decode`, through which every body goes, does the rest. See docs/adr/0002-protobuf-by-the-schema.md for why no
protobuf library is used.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from kone.apimachinery import schema
from kone.apimachinery.errors import StatusError, bad_request
from kone.apimachinery.kinds import GVK, parse_api_version
from kone.apimachinery.objects import Object
from kone.apimachinery.protowire import (
    BYTES,
    FIXED64,
    VARINT,
    Malformed,
    field_bytes,
    field_double,
    field_varint,
    fixed_size,
    read_parts,
    read_varint,
    write_varint,
)
from kone.apimachinery.schema import Field, GoType

MAGIC: Final = b"k8s\x00"
_OBJECT_META, _LIST_META = "meta.v1.ObjectMeta", "meta.v1.ListMeta"

# What a field's bytes are. The read loop compares these numbers, most frequent first.
TEXT, MESSAGE, MESSAGES, TEXTS, MAP, EMBEDDED, SPECIAL, LIST, SCALAR = range(9)


class _Slot(NamedTuple):
    """What a field number stands for."""

    code: int
    name: str
    kept: bool
    """Whether an empty value is written to JSON."""
    type: GoType | None
    inner: dict[int, _Slot] | None
    """The table of an embedded struct, whose fields JSON shows in the parent's place."""


_tables: dict[str, dict[int, _Slot]] = {}


def _table(identifier: str) -> dict[int, _Slot]:
    """The fields of a struct by their number; made when first asked."""
    found = _tables.get(identifier)
    if found is None:
        found = _tables[identifier] = {}
        _fill(found, schema.definition(identifier).fields.values(), 0)
    return found


def _fill(table: dict[int, _Slot], fields: Iterable[Field], depth: int) -> None:
    embedded: dict[int, list[Field]] = {}
    for field in fields:
        if len(field.parent) > depth:
            embedded.setdefault(field.parent[depth], []).append(field)
        elif field.number:
            kept = field.type.pointer or not field.omitempty
            table[field.number] = _Slot(_code(field.type), field.name, kept, field.type, None)
    for number, inside in embedded.items():
        inner: dict[int, _Slot] = {}
        _fill(inner, inside, depth + 1)
        table[number] = _Slot(EMBEDDED, "", False, None, inner)


def _code(go_type: GoType) -> int:
    if _is_wrapped(go_type):
        return SPECIAL
    return {
        schema.STRING: TEXT,
        schema.STRUCT: MESSAGE,
        schema.STRUCTS: MESSAGES,
        schema.STRINGS: TEXTS,
        schema.STRING_MAP: MAP,
        schema.QUANTITY_MAP: MAP,
        schema.MAP: MAP,
        schema.LIST: LIST,
        schema.OTHER: SPECIAL,
    }.get(go_type.code, SCALAR)


def _is_wrapped(go_type: GoType) -> bool:
    """A named slice of strings (Verbs, ExtraValue) is a message with one repeated field."""
    return go_type.code == schema.STRINGS and not go_type.text.startswith("[")


# -- reading ----------------------------------------------------------------------------------------------------------


def decode(body: bytes) -> Object:
    """The object in a protobuf body. Raises StatusError 400 for bytes that are none, and for kinds that are not built
    in.
    """
    if not body.startswith(MAGIC):
        raise bad_request("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")
    try:
        type_meta, raw = _envelope(body)
        api_version, kind = type_meta
        gvk = GVK(*parse_api_version(api_version), kind)
        found = schema.definition_of(gvk)
        if found is None:
            raise bad_request(f'no kind "{kind}" is registered for version "{api_version}"')
        obj: Object = {"kind": kind, "apiVersion": api_version}
        _message(_table(found.name), raw, 0, len(raw), obj)
        return obj
    except (Malformed, UnicodeDecodeError, IndexError, struct.error, RecursionError) as error:
        raise bad_request(f"unable to decode protobuf: {error or 'unexpected EOF'}") from None


def _envelope(body: bytes) -> tuple[tuple[str, str], bytes]:
    """((apiVersion, kind), the object's message)."""
    api_version = kind = ""
    raw = b""
    for number, value in read_parts(body, len(MAGIC), len(body)):
        if number == 1 and isinstance(value, bytes):
            for inner, text in read_parts(value, 0, len(value)):
                if isinstance(text, bytes):
                    if inner == 1:
                        api_version = text.decode()
                    elif inner == 2:
                        kind = text.decode()
        elif number == 2 and isinstance(value, bytes):
            raw = value
    return (api_version, kind), raw


def _message(table: dict[int, _Slot], data: bytes, pos: int, end: int, out: Object) -> None:
    """Reads data[pos:end] into `out`. The hot loop: no call for plain fields."""
    get = table.get
    while pos < end:
        tag = data[pos]
        pos += 1
        if tag > 0x7F:
            tag, pos = read_varint(data, pos - 1)
        wire = tag & 7
        slot = get(tag >> 3)
        if wire == BYTES:
            size = data[pos]
            pos += 1
            if size > 0x7F:
                size, pos = read_varint(data, pos - 1)
            start, pos = pos, pos + size
            if pos > end:
                raise Malformed("unexpected EOF")
            if slot is None:
                continue
            code, name, kept, go_type, inner = slot
            if code == TEXT:
                if size or kept:
                    out[name] = data[start:pos].decode()
            elif code == MESSAGE:
                assert go_type is not None
                nested: Object = out.get(name, {})
                _message(_tables.get(go_type.struct) or _table(go_type.struct), data, start, pos, nested)
                out[name] = nested
            elif code == MESSAGES:
                assert go_type is not None
                assert go_type.element is not None
                element: Object = {}
                _message(_table(go_type.element.struct), data, start, pos, element)
                out.setdefault(name, []).append(element)
            elif code == TEXTS:
                out.setdefault(name, []).append(data[start:pos].decode())
            elif code == MAP:
                assert go_type is not None
                assert go_type.element is not None
                key, value = _entry(data[start:pos], go_type.element)
                out.setdefault(name, {})[key] = value
            elif code == EMBEDDED:
                assert inner is not None
                _message(inner, data, start, pos, out)
            else:
                assert go_type is not None
                _add_other(out, slot, go_type, data[start:pos])
        elif wire == VARINT:
            value_ = data[pos]
            pos += 1
            if value_ > 0x7F:
                value_, pos = read_varint(data, pos - 1)
            if slot is None or slot.type is None:
                continue
            if slot.code == LIST:
                assert slot.type.element is not None
                out.setdefault(slot.name, []).append(_integer(value_, slot.type.element))
            elif value_ or slot.kept:
                out[slot.name] = _integer(value_, slot.type)
        else:
            size = fixed_size(wire)
            if pos + size > end:
                raise Malformed("unexpected EOF")
            if slot is not None and slot.type is not None and wire == FIXED64:
                out[slot.name] = _plain_float(struct.unpack_from("<d", data, pos)[0])
            pos += size


def _add_other(out: Object, slot: _Slot, go_type: GoType, data: bytes) -> None:
    if slot.code == LIST:
        assert go_type.element is not None
        element = go_type.element
        values = out.setdefault(slot.name, [])
        if element.code in (schema.INTEGER, schema.BOOLEAN):  # packed
            pos = 0
            while pos < len(data):
                value, pos = read_varint(data, pos)
                values.append(_integer(value, element))
        else:
            values.append(_read(element, data))
        return
    value = _read(go_type, data)
    if value is not None and (value or slot.kept or go_type.is_struct):
        out[slot.name] = value


def _integer(value: int, go_type: GoType) -> int | bool:
    if go_type.code == schema.BOOLEAN:
        return bool(value)
    if go_type.code != schema.INTEGER:
        raise Malformed("proto: wrong wireType = 0")
    value &= (1 << go_type.bits) - 1
    return value - (1 << go_type.bits) if go_type.bits > 8 and value >> (go_type.bits - 1) else value


def _plain_float(value: float) -> int | float:
    return int(value) if value.is_integer() and abs(value) < 1e21 else value


def _entry(data: bytes, element: GoType) -> tuple[str, Any]:
    """One entry of a map; what it leaves out is empty."""
    key = ""
    value: Any = "" if element.kind == "bytes" else schema.zero_value(element)
    for number, part in read_parts(data, 0, len(data)):
        if number == 1 and isinstance(part, bytes):
            key = part.decode()
        elif number == 2:
            value = _read(element, part) if isinstance(part, bytes) else _integer(part, element)
    return key, value


def _read(go_type: GoType, data: bytes) -> Any:
    """A value of any type from its bytes."""
    if go_type.code == schema.STRING:
        return data.decode()
    if go_type.code == schema.STRUCT:
        out: Object = {}
        _message(_table(go_type.struct), data, 0, len(data), out)
        return out
    if go_type.kind == "bytes":
        return base64.b64encode(data).decode()
    if go_type.kind == "float64":
        return _plain_float(struct.unpack("<d", data)[0])
    parts = read_parts(data, 0, len(data))
    if _is_wrapped(go_type):
        return [part.decode() for number, part in parts if number == 1 and isinstance(part, bytes)]
    found: dict[int, int | bytes] = dict(parts)
    if go_type.kind in (schema.TIME, schema.MICRO_TIME):
        return _read_time(go_type, found) if data else None
    if go_type.kind == schema.QUANTITY:
        return _text(found.get(1)) or "0"
    if go_type.kind == schema.INT_OR_STRING:
        number = found.get(2, 0)
        return _text(found.get(3)) if found.get(1) else _integer(number if isinstance(number, int) else 0, _INT32)
    if go_type.kind in schema.RAW:
        return _read_raw(found.get(1))
    return _read_schema_or(go_type.kind, parts)


_INT32 = schema.parse_type("int32")
_SCHEMA = schema.parse_type("apiextensions.v1.JSONSchemaProps")


def _text(value: int | bytes | None) -> str:
    return value.decode() if isinstance(value, bytes) else ""


def _read_time(go_type: GoType, found: Mapping[int, int | bytes]) -> str:
    """Seconds only for Time, microseconds for MicroTime, whatever the sender's clock knew."""
    seconds, nanos = found.get(1, 0), found.get(2, 0)
    if not isinstance(seconds, int) or not isinstance(nanos, int):
        raise Malformed("proto: wrong wireType for field Seconds")
    seconds = seconds - (1 << 64) if seconds >> 63 else seconds
    try:
        moment = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0")
    except (OverflowError, ValueError, OSError):
        raise Malformed("time out of range") from None
    return f"{moment}Z" if go_type.kind == schema.TIME else f"{moment}.{nanos // 1000:06d}Z"


def _read_raw(value: int | bytes | None) -> Any:
    """JSON inside of protobuf, or an object in an envelope of its own."""
    if not isinstance(value, bytes) or not value:
        return None
    if value.startswith(MAGIC):
        return decode(value)
    try:
        return json.loads(value)
    except ValueError:
        raise Malformed("raw field holds no JSON") from None


def _read_schema_or(kind: str, parts: list[tuple[int, int | bytes]]) -> Any:
    """JSONSchemaPropsOr…: a schema, or what else the name says."""
    schemas: dict[int, list[Any]] = {1: [], 2: []}
    allows = False
    for number, part in parts:
        if isinstance(part, int):
            allows = bool(part)
        elif kind == schema.SCHEMA_OR_STRINGS and number == 2:
            schemas[2].append(part.decode())
        else:
            schemas[number].append(_read(_SCHEMA, part))
    if kind == schema.SCHEMA_OR_BOOL:
        return schemas[2][0] if schemas[2] else allows
    return schemas[2] or (schemas[1][0] if schemas[1] else None)


# -- writing ----------------------------------------------------------------------------------------------------------


def encode(obj: Object) -> bytes:
    """A built-in object as a protobuf body. Raises StatusError 406 for kinds that have none."""
    api_version, kind = obj.get("apiVersion", ""), obj.get("kind", "")
    found = schema.definition_of(GVK(*parse_api_version(api_version), kind))
    if found is not None:
        message = _write_message(_table(found.name), obj)
    elif kind in ("PartialObjectMetadata", "PartialObjectMetadataList"):
        message = _write_partial(obj)
    else:
        raise StatusError(406, "NotAcceptable", "only the following media types are accepted: application/json")
    type_meta = field_bytes(1, api_version.encode()) + field_bytes(2, kind.encode())
    return MAGIC + field_bytes(1, type_meta) + field_bytes(2, message) + b"\x1a\x00\x22\x00"


def _write_partial(obj: Mapping[str, Any]) -> bytes:
    """PartialObjectMetadata, or a list of it: metadata is field 1, items field 2. They are of meta.k8s.io alone."""
    if "items" not in obj:
        return field_bytes(1, _write_message(_table(_OBJECT_META), obj.get("metadata") or {}))
    items = b"".join(field_bytes(2, _write_partial(item)) for item in obj["items"] or ())
    return field_bytes(1, _write_message(_table(_LIST_META), obj.get("metadata") or {})) + items


def _write_message(table: dict[int, _Slot], obj: Mapping[str, Any]) -> bytes:
    out = bytearray()
    for number, slot in sorted(table.items()):
        if slot.inner is not None:
            out += field_bytes(number, _write_message(slot.inner, obj))
            continue
        value = obj.get(slot.name)
        assert slot.type is not None
        if value is None:
            continue
        if slot.code in (MESSAGES, TEXTS, LIST):
            assert slot.type.element is not None
            for each in value:
                out += _write_field(number, slot.type.element, each)
        elif slot.code == MAP:
            assert slot.type.element is not None
            for key in sorted(value):
                entry = field_bytes(1, key.encode()) + _write_field(2, slot.type.element, value[key])
                out += field_bytes(number, entry)
        else:
            out += _write_field(number, slot.type, value)
    return bytes(out)


def _write_field(number: int, go_type: GoType, value: Any) -> bytes:
    if go_type.code in (schema.INTEGER, schema.BOOLEAN):
        return field_varint(number, int(value))
    if go_type.kind == "float64":
        return field_double(number, value)
    return field_bytes(number, _write(go_type, value))


def _write(go_type: GoType, value: Any) -> bytes:
    if go_type.code == schema.STRING:
        return str(value).encode()
    if go_type.code == schema.STRUCT:
        return _write_message(_table(go_type.struct), value or {})
    if go_type.kind == "bytes":
        return base64.b64decode(value or "")
    if _is_wrapped(go_type):
        return b"".join(field_bytes(1, text.encode()) for text in value)
    if go_type.kind in (schema.TIME, schema.MICRO_TIME):
        return _write_time(value) if value else b""
    if go_type.kind == schema.QUANTITY:
        return field_bytes(1, str(value).encode())
    if go_type.kind == schema.INT_OR_STRING:
        if isinstance(value, str):
            return b"\x08\x01\x10\x00" + field_bytes(3, value.encode())
        return b"\x08\x00\x10" + write_varint(value) + b"\x1a\x00"
    if go_type.kind in schema.RAW:
        return field_bytes(1, json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode())
    return _write_schema_or(go_type.kind, value)


def _write_time(text: str) -> bytes:
    moment = datetime.fromisoformat(text)
    seconds = int(moment.replace(microsecond=0).timestamp())
    return b"\x08" + write_varint(seconds) + b"\x10" + write_varint(moment.microsecond * 1000)


def _write_schema_or(kind: str, value: Any) -> bytes:
    if kind == schema.SCHEMA_OR_BOOL:
        allows = b"\x08" + write_varint(bool(value))
        return allows + field_bytes(2, _write(_SCHEMA, value)) if isinstance(value, dict) else allows
    if isinstance(value, dict):
        return field_bytes(1, _write(_SCHEMA, value))
    return b"".join(field_bytes(2, each.encode() if isinstance(each, str) else _write(_SCHEMA, each)) for each in value)
