"""OpenAPI v2: the same API in older words, without what they cannot say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kone.apiserver.openapi import OpenApi
from kone.apiserver.openapi_v2 import OpenApiV2, to_v2
from kone.registry.custom_resources import resources
from kone.registry.registry import builtin

PRESERVED = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"$ref": "#/components/schemas/a.B"}, {"$ref": "#/definitions/a.B"}),
        ({"default": {}, "allOf": [{"$ref": "#/components/schemas/a.B"}]}, {"$ref": "#/definitions/a.B"}),
        ({"type": "string", "anyOf": [{"pattern": "a"}], "maxLength": 3}, {"type": "string", "maxLength": 3}),
        ({"type": "string", "nullable": True}, {}),
        ({**PRESERVED, "properties": {"a": {"type": "string"}}}, {"x-kubernetes-preserve-unknown-fields": True}),
        ({"type": "array", "items": {"type": "string", "nullable": True}}, {"type": "array", "items": {}}),
        (
            {
                "type": "object",
                "required": ["a", "b"],
                "properties": {"a": {"nullable": True}, "b": {"type": "string"}},
            },
            {"type": "object", "required": ["b"], "properties": {"a": {}, "b": {"type": "string"}}},
        ),
    ],
)
def test_schemas(schema: dict[str, Any], expected: dict[str, Any]) -> None:
    assert to_v2(schema) == expected


async def test_the_document_is_whole_and_kept_until_something_changes() -> None:
    registry = builtin()
    documents = OpenApiV2(OpenApi(registry))
    body, tag = await documents.document()
    found = json.loads(body)
    assert found["swagger"] == "2.0"
    pod = found["definitions"]["io.k8s.api.core.v1.Pod"]
    assert pod["properties"]["spec"]["$ref"] == "#/definitions/io.k8s.api.core.v1.PodSpec"
    assert pod["x-kubernetes-group-version-kind"] == [{"group": "", "kind": "Pod", "version": "v1"}]
    create = found["paths"]["/api/v1/namespaces/{namespace}/pods"]["post"]
    assert create["parameters"][0]["schema"] == {"$ref": "#/definitions/io.k8s.api.core.v1.Pod"}
    assert (await documents.document())[1] == tag
    registry.remove(next(iter(registry)).gvr)
    assert (await documents.document())[1] != tag


async def test_a_custom_kind_that_takes_unknown_fields_is_any_object() -> None:
    registry = builtin()
    root = {**PRESERVED, "description": "d", "properties": {"spec": {"type": "object"}}}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": root}}
    names = {"plural": "ws", "singular": "w", "kind": "W", "listKind": "WList"}
    spec = {"group": "example.com", "scope": "Namespaced", "names": names, "versions": [version]}
    definition = {"metadata": {"name": "ws.example.com"}, "spec": spec, "status": {"acceptedNames": names}}
    for resource in resources(definition):
        registry.add(resource)
    found = json.loads((await OpenApiV2(OpenApi(registry)).document())[0])["definitions"]["com.example.v1.W"]
    marks = [{"group": "example.com", "kind": "W", "version": "v1"}]
    assert found == {"type": "object", "x-kubernetes-group-version-kind": marks}


async def test_every_reference_leads_somewhere() -> None:
    found = json.loads((await OpenApiV2(OpenApi(builtin())).document())[0])

    def references(value: Any) -> Any:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                yield value["$ref"]
            for each in value.values():
                yield from references(each)
        elif isinstance(value, list):
            for each in value:
                yield from references(each)

    missing = {ref for ref in references(found) if ref.removeprefix("#/definitions/") not in found["definitions"]}
    assert missing == set()
