"""OpenAPI v2 as protobuf: what client-go asks for as `application/com.github.proto-openapi.spec.v2@v1.0+protobuf`
(`kubectl explain --output=plaintext-openapiv2`, and every client from before OpenAPI v3).

Messages and numbers: github.com/google/gnostic-models, openapiv2/OpenAPIv2.proto. Only what kone's documents hold is
in the tables; a field that begins with "x-" goes with its value as YAML, of which JSON is a part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from kone.apimachinery.objects import Object
from kone.apimachinery.protowire import field_bytes, field_double, field_varint
from kone.apiserver.negotiation import JSON, parse_accept

ASKED_FOR: Final = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
CONTENT_TYPE: Final = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
"""How clients ask for it, and how upstream answers: `@` may not stand in a media type (RFC 6838)."""

Writer = Callable[[int, Any], bytes]
"""A field's bytes from its number and its value in JSON."""


def wanted(accept: str) -> bool:
    """Whether a client that sends this Accept header takes protobuf before JSON."""
    for clause in parse_accept(accept):
        if clause.media_type in (ASKED_FOR, CONTENT_TYPE):
            return True
        if clause.media_type in (JSON, "application/*", "*/*"):
            return False
    return False


def encode(document: Mapping[str, Any]) -> bytes:
    """The whole document, in 0.3 s for all built-in kinds."""
    return _message(_DOCUMENT, document)


def _message(fields: Mapping[str, tuple[int, Writer]], value: Mapping[str, Any]) -> bytes:
    out = bytearray()
    for name, each in value.items():
        if (found := fields.get(name)) is not None:
            number, write = found
            out += write(number, each)
        elif name.startswith("x-") and "x-" in fields:
            number, write = fields["x-"]
            out += write(number, (name, each))
    return bytes(out)


def _string(number: int, value: str) -> bytes:
    return field_bytes(number, value.encode())


def _strings(number: int, values: list[str]) -> bytes:
    return b"".join(field_bytes(number, value.encode()) for value in values)


def _any(number: int, value: Any) -> bytes:
    return field_bytes(number, field_bytes(2, orjson.dumps(value) + b"\n"))


def _anys(number: int, values: list[Any]) -> bytes:
    return b"".join(_any(number, value) for value in values)


def _extension(number: int, named: tuple[str, Any]) -> bytes:
    name, value = named
    return field_bytes(number, _string(1, name) + _any(2, value))


def _named(write: Writer, *, number: int = 1) -> Writer:
    """A JSON object as a message that repeats (name, value); `number` is the repeated field's."""

    def of(outer: int, value: Mapping[str, Any]) -> bytes:
        pairs = (field_bytes(number, _string(1, name) + write(2, each)) for name, each in value.items())
        return field_bytes(outer, b"".join(pairs))

    return of


def _each(write: Writer) -> Writer:
    return lambda number, values: b"".join(write(number, value) for value in values)


def _wrapped(write: Writer) -> Writer:
    """A message whose only field here is its first."""
    return lambda number, value: field_bytes(number, write(1, value))


def _schema(number: int, value: Object) -> bytes:
    return field_bytes(number, _message(_SCHEMA, value))


def _type(number: int, value: str | list[str]) -> bytes:
    return field_bytes(number, _strings(1, [value] if isinstance(value, str) else value))


def _items(number: int, value: Object | list[Object]) -> bytes:
    return field_bytes(number, _each(_schema)(1, value if isinstance(value, list) else [value]))


def _additional(number: int, value: Object | bool) -> bytes:
    return field_bytes(number, field_varint(2, value) if isinstance(value, bool) else _schema(1, value))


def _operation(number: int, value: Object) -> bytes:
    return field_bytes(number, _message(_OPERATION, value))


def _path(number: int, value: Object) -> bytes:
    return field_bytes(number, _message(_PATH_ITEM, value))


def _parameter(number: int, value: Object) -> bytes:
    """ParametersItem, in it a Parameter, in it either the body's or that of one other place."""
    if value["in"] == "body":
        inside = field_bytes(1, _message(_BODY_PARAMETER, value))
    else:
        place = _PARAMETER_PLACES[value["in"]]
        inside = field_bytes(2, field_bytes(place, _message(_PARAMETER_IN[value["in"]], value)))
    return field_bytes(number, field_bytes(1, inside))


def _response(number: int, value: Object) -> bytes:
    return field_bytes(number, field_bytes(1, _message(_RESPONSE, value)))


def _security_definition(number: int, value: Object) -> bytes:
    return field_bytes(number, field_bytes(2, _message(_API_KEY, value)))


_SCHEMA: Final[Mapping[str, tuple[int, Writer]]] = {
    "$ref": (1, _string),
    "format": (2, _string),
    "title": (3, _string),
    "description": (4, _string),
    "default": (5, _any),
    "multipleOf": (6, field_double),
    "maximum": (7, field_double),
    "exclusiveMaximum": (8, field_varint),
    "minimum": (9, field_double),
    "exclusiveMinimum": (10, field_varint),
    "maxLength": (11, field_varint),
    "minLength": (12, field_varint),
    "pattern": (13, _string),
    "maxItems": (14, field_varint),
    "minItems": (15, field_varint),
    "uniqueItems": (16, field_varint),
    "maxProperties": (17, field_varint),
    "minProperties": (18, field_varint),
    "required": (19, _strings),
    "enum": (20, _anys),
    "additionalProperties": (21, _additional),
    "type": (22, _type),
    "items": (23, _items),
    "properties": (25, _named(_schema)),
    "example": (30, _any),
    "x-": (31, _extension),
}
_BODY_PARAMETER: Final[Mapping[str, tuple[int, Writer]]] = {
    "description": (1, _string),
    "name": (2, _string),
    "in": (3, _string),
    "required": (4, field_varint),
    "schema": (5, _schema),
}
_PARAMETER_PLACES: Final = {"header": 1, "query": 3, "path": 4}
_FIRST: Final[Mapping[str, tuple[int, Writer]]] = {
    "required": (1, field_varint),
    "in": (2, _string),
    "description": (3, _string),
    "name": (4, _string),
}
_PARAMETER_IN: Final[Mapping[str, Mapping[str, tuple[int, Writer]]]] = {
    "header": {**_FIRST, "type": (5, _string), "format": (6, _string), "uniqueItems": (19, field_varint)},
    "query": {**_FIRST, "type": (6, _string), "format": (7, _string), "uniqueItems": (20, field_varint)},
    "path": {**_FIRST, "type": (5, _string), "format": (6, _string), "uniqueItems": (19, field_varint)},
}
_RESPONSE: Final[Mapping[str, tuple[int, Writer]]] = {
    "description": (1, _string),
    "schema": (2, _wrapped(_schema)),
}
_OPERATION: Final[Mapping[str, tuple[int, Writer]]] = {
    "tags": (1, _strings),
    "summary": (2, _string),
    "description": (3, _string),
    "operationId": (5, _string),
    "produces": (6, _strings),
    "consumes": (7, _strings),
    "parameters": (8, _each(_parameter)),
    "responses": (9, _named(_response)),
    "schemes": (10, _strings),
    "deprecated": (11, field_varint),
    "x-": (13, _extension),
}
_PATH_ITEM: Final[Mapping[str, tuple[int, Writer]]] = {
    "get": (2, _operation),
    "put": (3, _operation),
    "post": (4, _operation),
    "delete": (5, _operation),
    "options": (6, _operation),
    "head": (7, _operation),
    "patch": (8, _operation),
    "parameters": (9, _each(_parameter)),
}
_API_KEY: Final[Mapping[str, tuple[int, Writer]]] = {
    "type": (1, _string),
    "name": (2, _string),
    "in": (3, _string),
    "description": (4, _string),
}
_INFO: Final[Mapping[str, tuple[int, Writer]]] = {"title": (1, _string), "version": (2, _string)}
_DOCUMENT: Final[Mapping[str, tuple[int, Writer]]] = {
    "swagger": (1, _string),
    "info": (2, lambda number, value: field_bytes(number, _message(_INFO, value))),
    "paths": (8, _named(_path, number=2)),
    "definitions": (9, _named(_schema)),
    "security": (12, _each(_named(_wrapped(_strings)))),
    "securityDefinitions": (13, _named(_security_definition)),
}
