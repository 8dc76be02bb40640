"""OpenAPI v2 as protobuf: every part in its message and at its number; who is given it."""

from __future__ import annotations

from typing import Any

import pytest

from kone.apiserver.openapi import OpenApi
from kone.apiserver.openapi_proto import ASKED_FOR, CONTENT_TYPE, encode, wanted
from kone.apiserver.openapi_v2 import OpenApiV2
from kone.registry.registry import builtin

POD = "io.k8s.api.core.v1.Pod"


def text(number: int, *parts: bytes) -> bytes:
    """A field of short bytes."""
    inside = b"".join(parts)
    return bytes([number << 3 | 2, len(inside)]) + inside


def number(at: int, value: int) -> bytes:
    tag = at << 3
    return bytes([tag, value] if tag < 0x80 else [tag & 0x7F | 0x80, tag >> 7, value])


def long_text(at: int, *parts: bytes) -> bytes:
    """The same of a field whose number is above 15."""
    inside = b"".join(parts)
    return bytes([at << 3 & 0x7F | 2 | 0x80, at >> 4, len(inside)]) + inside


def schema(*fields: bytes) -> bytes:
    """A document that defines "A" so."""
    return text(9, text(1, text(1, b"A"), text(2, *fields)))


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"swagger": "2.0"}, text(1, b"2.0")),
        ({"info": {"title": "K", "version": "v1"}}, text(2, text(1, b"K"), text(2, b"v1"))),
        ({"definitions": {"A": {"$ref": "#/definitions/B"}}}, schema(text(1, b"#/definitions/B"))),
        ({"definitions": {"A": {"type": "string"}}}, schema(long_text(22, text(1, b"string")))),
        ({"definitions": {"A": {"required": ["b", "c"]}}}, schema(long_text(19, b"b"), long_text(19, b"c"))),
        ({"definitions": {"A": {"maxLength": 3, "uniqueItems": True}}}, schema(number(11, 3), number(16, 1))),
        ({"definitions": {"A": {"minimum": 1}}}, schema(b"\x49" + bytes(6) + b"\xf0\x3f")),
        ({"definitions": {"A": {"default": {}}}}, schema(text(5, text(2, b"{}\n")))),
        ({"definitions": {"A": {"enum": ["b", 1]}}}, schema(*(long_text(20, text(2, v)) for v in (b'"b"\n', b"1\n")))),
        (
            {"definitions": {"A": {"items": {"format": "byte"}}}},
            schema(long_text(23, text(1, text(2, b"byte")))),
        ),
        (
            {"definitions": {"A": {"properties": {"b": {"title": "c"}}}}},
            schema(long_text(25, text(1, text(1, b"b"), text(2, text(3, b"c"))))),
        ),
        (
            {"definitions": {"A": {"additionalProperties": {"format": "byte"}}}},
            schema(long_text(21, text(1, text(2, b"byte")))),
        ),
        ({"definitions": {"A": {"additionalProperties": True}}}, schema(long_text(21, number(2, 1)))),
        (
            {"definitions": {"A": {"x-kubernetes-list-type": "map"}}},
            schema(long_text(31, text(1, b"x-kubernetes-list-type"), text(2, text(2, b'"map"\n')))),
        ),
        (
            {"paths": {"/a": {"get": {"operationId": "b"}}}},
            text(8, text(2, text(1, b"/a"), text(2, text(2, text(5, b"b"))))),
        ),
        (
            {"paths": {"/a": {"parameters": [{"name": "b", "in": "query", "type": "string"}]}}},
            text(8, text(2, text(1, b"/a"), text(2, text(9, text(1, text(2, text(3, text(4, b"b"), text(2, b"query"),
                                                                                      text(6, b"string"))))))))
        ),
        (
            {"paths": {"/a": {"parameters": [{"name": "b", "in": "body", "schema": {"title": "c"}}]}}},
            text(8, text(2, text(1, b"/a"), text(2, text(9, text(1, text(1, text(2, b"b"), text(3, b"body"),
                                                                         text(5, text(3, b"c")))))))),
        ),
        (
            {"paths": {"/a": {"put": {"responses": {"200": {"description": "OK", "schema": {"title": "c"}}}}}}},
            text(8, text(2, text(1, b"/a"), text(2, text(3, text(9, text(1, text(1, b"200"), text(2, text(1,
                 text(1, b"OK"), text(2, text(1, text(3, b"c"))))))))))),
        ),
        ({"security": [{"BearerToken": []}]}, text(12, text(1, text(1, b"BearerToken"), text(2)))),
        (
            {"securityDefinitions": {"B": {"type": "apiKey", "name": "n", "in": "header"}}},
            text(13, text(1, text(1, b"B"), text(2, text(2, text(1, b"apiKey"), text(2, b"n"), text(3, b"header"))))),
        ),
    ],
)  # fmt: skip
def test_parts(document: dict[str, Any], expected: bytes) -> None:
    assert encode(document) == expected


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", False),
        ("application/json", False),
        (ASKED_FOR, True),
        (CONTENT_TYPE, True),
        (f"{CONTENT_TYPE}, application/json", True),
        (f"application/json, {CONTENT_TYPE}", False),
        (f"application/json;q=0.5, {ASKED_FOR}", True),
        ("*/*", False),
    ],
)
def test_who_is_given_it(accept: str, expected: bool) -> None:
    assert wanted(accept) is expected


async def test_the_whole_document_is_kept_with_its_tag() -> None:
    documents = OpenApiV2(OpenApi(builtin()))
    body, tag = await documents.document(proto=True)
    assert POD.encode() in body
    assert await documents.document(proto=True) == (body, tag)
    assert (await documents.document())[1] == tag
