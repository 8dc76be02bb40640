"""OpenAPI v2 (Swagger 2.0): the documents of OpenAPI v3 in one, for clients that read no other.

What v2 cannot say is left out, as upstream leaves it out, so that kubectl's checks hold nobody up: alternatives,
nullable values, and the inside of objects with unknown fields. Rules: k8s.io/apiextensions-apiserver,
pkg/controller/openapi/v2.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from typing import Any, Final

import orjson

from kone import KUBERNETES_VERSION
from kone.apimachinery.objects import Object
from kone.apiserver import openapi_proto
from kone.apiserver.openapi import OpenApi

_OLD_REF, _NEW_REF = "#/components/schemas/", "#/definitions/"
_ALTERNATIVES: Final = ("allOf", "anyOf", "oneOf", "not")
_QUANTITY, _INT_OR_STRING = (
    "io.k8s.apimachinery.pkg.api.resource.Quantity",
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString",
)
_SPECIAL: Final[Mapping[str, Object]] = {
    _QUANTITY: {"type": "string"},
    _INT_OR_STRING: {"type": "string", "format": "int-or-string"},
}
_KINDS: Final = "x-kubernetes-group-version-kind"
PRESERVES: Final = "x-kubernetes-preserve-unknown-fields"


class OpenApiV2:
    """/openapi/v2, made when it is asked for and kept until what is served changes.

    The making takes some 0.2 s of a processor, which a thread spends: the loop serves others meanwhile."""

    def __init__(self, documents: OpenApi) -> None:
        self._documents = documents
        self._of = ""
        self._body = b""
        self._proto = b""
        self._making = asyncio.Lock()

    async def document(self, *, proto: bool = False) -> tuple[bytes, str]:
        """(the document as JSON or as protobuf, its ETag without quotes)."""
        async with self._making:
            index = orjson.loads(self._documents.index())
            state = hashlib.sha512(orjson.dumps(index)).hexdigest().upper()
            if state != self._of:
                found = [self._documents.document(path) or b"{}" for path in index["paths"]]
                self._body = await asyncio.to_thread(_join, found)
                self._proto, self._of = b"", state
            if proto and not self._proto:
                self._proto = await asyncio.to_thread(_to_proto, self._body)
            return self._proto if proto else self._body, self._of


def _join(documents: list[bytes]) -> bytes:
    return orjson.dumps(_joined(orjson.loads(document) for document in documents))


def _to_proto(document: bytes) -> bytes:
    return openapi_proto.encode(orjson.loads(document))


def _joined(documents: Any) -> Object:
    definitions: Object = {}
    paths: Object = {}
    for document in documents:
        for name, schema in document.get("components", {}).get("schemas", {}).items():
            definitions[name] = dict(_SPECIAL[name]) if name in _SPECIAL else _definition(schema)
        for path, item in document.get("paths", {}).items():
            paths[path] = _path(item)
    version = ".".join(KUBERNETES_VERSION.split(".")[:2])
    return {
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": version},
        "paths": dict(sorted(paths.items())),
        "definitions": dict(sorted(definitions.items())),
        "securityDefinitions": {"BearerToken": {"type": "apiKey", "name": "authorization", "in": "header"}},
        "security": [{"BearerToken": []}],
    }


def _definition(schema: Mapping[str, Any]) -> Object:
    """A whole schema. Of a custom kind that takes unknown fields at its root nothing is said but that it is an object:
    kubectl would take any properties here for all that there are."""
    if schema.get(PRESERVES) and (marks := schema.get(_KINDS)):
        return {"type": "object", _KINDS: marks}
    return to_v2(schema)


def to_v2(schema: Mapping[str, Any]) -> Object:
    """A schema in the words of v2."""
    if (ref := schema.get("$ref")) is not None:
        return {"$ref": ref.replace(_OLD_REF, _NEW_REF)}
    all_of: list[Object] = schema.get("allOf") or []
    if len(all_of) == 1 and "$ref" in all_of[0]:  # a field that holds a struct
        rest = {key: value for key, value in schema.items() if key not in ("allOf", "default")}
        return {**to_v2(all_of[0]), **rest}
    made: Object = {key: value for key, value in schema.items() if key not in (*_ALTERNATIVES, "nullable")}
    nullable, preserves = schema.get("nullable"), schema.get(PRESERVES)
    if nullable or preserves:
        for word in ("items", "properties"):
            made.pop(word, None)
    if (
        nullable
        or (preserves and made.get("type") == "object")
        or (made.get("type") == "array" and "items" not in made)
    ):
        made.pop("type", None)
    if "items" in made:
        made["items"] = to_v2(made["items"])
    if "properties" in made:
        made["properties"] = {name: to_v2(each) for name, each in made["properties"].items()}
        absent = {name for name, each in schema["properties"].items() if each.get("nullable")}
        if absent and "required" in made:
            made["required"] = [name for name in made["required"] if name not in absent]
    if isinstance(values := made.get("additionalProperties"), Mapping):
        made["additionalProperties"] = to_v2(values)
        if values.get("nullable"):
            made.pop("required", None)
    if not made.get("required", True):
        del made["required"]
    return made


def _path(item: Mapping[str, Any]) -> Object:
    return {
        word: [_parameter(each) for each in value] if word == "parameters" else _operation(value)
        for word, value in item.items()
    }


def _parameter(parameter: Mapping[str, Any]) -> Object:
    """A parameter in v2 says its type itself."""
    rest = {key: value for key, value in parameter.items() if key != "schema"}
    return {**rest, **parameter.get("schema", {})}


def _operation(operation: Mapping[str, Any]) -> Object:
    made = {key: value for key, value in operation.items() if key not in ("requestBody", "parameters", "responses")}
    parameters = [_parameter(each) for each in operation.get("parameters", ())]
    if (body := operation.get("requestBody")) is not None:
        schema = next(iter(body["content"].values()))["schema"]
        made["consumes"] = list(body["content"])
        parameters.insert(0, {"name": "body", "in": "body", "required": True, "schema": to_v2(schema)})
    if parameters:
        made["parameters"] = parameters
    answers: Object = {}
    for code, answer in operation.get("responses", {}).items():
        answers[code] = {"description": answer["description"]}
        if content := answer.get("content"):
            made["produces"] = list(content)
            answers[code]["schema"] = to_v2(next(iter(content.values()))["schema"])
    made["responses"] = answers
    made["schemes"] = ["https"]
    return made
