"""Custom resources over the write path: served while their definition stands, by its schema, and gone with it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import CUSTOMRESOURCEDEFINITIONS, GVR
from kone.apimachinery.objects import Object, deep_copy, dig
from kone.apiserver.openapi import OpenApi
from kone.client.client import Client
from kone.registry.custom_resources import resources
from kone.registry.registry import builtin
from kone.testing import Cluster

WIDGETS = GVR("example.com", "v1", "widgets")


def definition(plural: str = "widgets", kind: str = "Widget", **version: Any) -> Object:
    schema = {
        "type": "object",
        "properties": {
            "spec": {
                "type": "object",
                "properties": {
                    "replicas": {"type": "integer", "minimum": 0, "default": 1},
                    "color": {"type": "string", "enum": ["red", "blue"]},
                },
            },
            "status": {"type": "object", "properties": {"replicas": {"type": "integer"}}},
        },
    }
    made = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}, **version}
    names = {"plural": plural, "kind": kind}
    spec = {"group": "example.com", "scope": "Namespaced", "names": names, "versions": [made]}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.example.com"},
        "spec": spec,
    }


def widget(name: str = "w", **spec: Any) -> Object:
    return {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec}


async def until(client: Client, look: Callable[[], bool]) -> None:
    """Wait for a definition to change so that `look()` holds."""
    happened = asyncio.Event()
    unsubscribe = client.informer(CUSTOMRESOURCEDEFINITIONS).subscribe(lambda *_: happened.set() if look() else None)
    async with asyncio.timeout(5):
        await happened.wait()
    unsubscribe()


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with Cluster(controllers=False, scheduler=False) as made:
        yield made


@pytest.fixture
async def client(cluster: Cluster) -> Client:
    return cluster.client


async def define(client: Client, made: Object) -> Object:
    """Create a definition, and wait until its names are judged."""
    informer = client.informer(CUSTOMRESOURCEDEFINITIONS)
    name = made["metadata"]["name"]
    await client.create(CUSTOMRESOURCEDEFINITIONS, made)
    await until(client, lambda: bool(dig(informer.get("", name), "status", "conditions", default=[])))
    return await client.get(CUSTOMRESOURCEDEFINITIONS, name)


def conditions(obj: Object) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c["reason"]) for c in dig(obj, "status", "conditions", default=[])}


async def test_an_established_definition_is_served(client: Client) -> None:
    made = await define(client, definition())
    assert conditions(made) == {
        "NamesAccepted": ("True", "NoConflicts"),
        "Established": ("True", "InitialNamesAccepted"),
    }
    created = await client.create(WIDGETS, {**widget(color="red"), "extra": 1}, namespace="default")
    assert created["spec"] == {"color": "red", "replicas": 1}
    assert "extra" not in created
    assert created["metadata"]["generation"] == 1
    assert [w["metadata"]["name"] for w in await client.list(WIDGETS, "default")] == ["w"]


async def test_values_are_held_against_the_schema(client: Client) -> None:
    await define(client, definition())
    with pytest.raises(StatusError) as caught:
        await client.create(WIDGETS, widget(color="green", replicas=-1), namespace="default")
    assert caught.value.code == 422
    assert [cause["field"] for cause in caught.value.details["causes"]] == ["spec.color", "spec.replicas"]


async def test_what_was_wrong_before_is_no_fault_of_an_update(client: Client) -> None:
    """KEP-4008: a schema that became stricter does not hold up changes elsewhere."""
    loose = definition()
    schema = loose["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    del schema["color"]["enum"]
    made = await define(client, loose)
    await client.create(WIDGETS, widget(color="green"), namespace="default")
    await client.update(
        CUSTOMRESOURCEDEFINITIONS, {**made, "spec": definition()["spec"] | {"names": made["spec"]["names"]}}
    )
    changed = await client.patch(WIDGETS, "w", {"spec": {"replicas": 3}}, namespace="default")
    assert changed["spec"] == {"color": "green", "replicas": 3}
    with pytest.raises(StatusError, match="Unsupported value"):
        await client.patch(WIDGETS, "w", {"spec": {"color": "grey"}}, namespace="default")


async def test_status_is_a_subresource_where_the_definition_says_so(client: Client) -> None:
    await define(client, definition(subresources={"status": {}}))
    created = await client.create(WIDGETS, {**widget(), "status": {"replicas": 7}}, namespace="default")
    assert "status" not in created
    changed = await client.patch(
        WIDGETS, "w", {"status": {"replicas": 2}, "spec": {"replicas": 9}}, namespace="default", subresource="status"
    )
    assert (changed["status"], changed["spec"]["replicas"]) == ({"replicas": 2}, 1)
    assert changed["metadata"]["generation"] == 1
    changed = await client.patch(WIDGETS, "w", {"spec": {"replicas": 4}}, namespace="default")
    assert (changed["metadata"]["generation"], changed["status"]) == (2, {"replicas": 2})


async def test_a_name_that_is_taken_is_refused_until_it_is_free(client: Client) -> None:
    await define(client, definition())
    made = await define(client, definition("gadgets"))
    assert conditions(made) == {
        "NamesAccepted": ("False", "ListKindConflict"),
        "Established": ("False", "NotAccepted"),
    }
    with pytest.raises(StatusError) as caught:
        await client.list(GVR("example.com", "v1", "gadgets"))
    assert caught.value.code == 404
    await client.delete(CUSTOMRESOURCEDEFINITIONS, "widgets.example.com")
    informer = client.informer(CUSTOMRESOURCEDEFINITIONS)
    await until(client, lambda: conditions(informer.get("", "gadgets.example.com") or {})["Established"][0] == "True")
    assert await client.list(GVR("example.com", "v1", "gadgets")) == []


async def test_objects_go_with_their_definition(client: Client) -> None:
    await define(client, definition())
    await client.create(WIDGETS, widget(), namespace="default")
    await client.delete(CUSTOMRESOURCEDEFINITIONS, "widgets.example.com")
    informer = client.informer(CUSTOMRESOURCEDEFINITIONS)
    await until(client, lambda: informer.get("", "widgets.example.com") is None)
    with pytest.raises(StatusError) as caught:
        await client.list(WIDGETS)
    assert caught.value.code == 404
    await define(client, definition())
    assert await client.list(WIDGETS) == [], "a new definition of the name begins empty"


async def test_several_versions_read_what_one_of_them_stores(client: Client) -> None:
    made = definition()
    wider = {"type": "object", "properties": {"spec": {"type": "object", "properties": {"size": {"type": "integer"}}}}}
    made["spec"]["versions"].append(
        {"name": "v2beta1", "served": True, "storage": False, "schema": {"openAPIV3Schema": wider}}
    )
    await define(client, made)
    beta = GVR("example.com", "v2beta1", "widgets")
    created = await client.create(beta, {**widget(size=3), "apiVersion": "example.com/v2beta1"}, namespace="default")
    assert created["apiVersion"] == "example.com/v2beta1"
    assert created["spec"] == {}, "what the stored version does not name is lost"
    assert (await client.get(WIDGETS, "w", "default"))["apiVersion"] == "example.com/v1"


async def test_what_was_stored_as_another_version_can_still_be_changed(client: Client) -> None:
    made = definition()
    [first] = made["spec"]["versions"]
    made["spec"]["versions"].append({**first, "name": "v2", "storage": False})
    made = await define(client, made)
    await client.create(WIDGETS, widget(color="red"), namespace="default")
    made = deep_copy(made)
    for version in made["spec"]["versions"]:
        version["storage"] = version["name"] == "v2"
    await client.update(CUSTOMRESOURCEDEFINITIONS, made)
    second = GVR("example.com", "v2", "widgets")
    assert (await client.get(second, "w", "default"))["apiVersion"] == "example.com/v2"
    changed = await client.patch(second, "w", {"spec": {"color": "blue"}}, namespace="default")
    assert (changed["apiVersion"], changed["spec"]["color"]) == ("example.com/v2", "blue")


async def test_a_change_of_what_identifies_an_object_is_two_causes(client: Client) -> None:
    await define(client, definition())
    await client.create(WIDGETS, widget(), namespace="default")
    with pytest.raises(StatusError) as refused:
        await client.patch(WIDGETS, "w", {"metadata": {"uid": "abc"}}, namespace="default")
    assert [cause["field"] for cause in refused.value.details["causes"]] == ["metadata.uid"] * 2
    assert refused.value.message.count("field is immutable") == 1


async def test_defaults_of_embedded_objects_say_only_metadata_that_there_is(client: Client) -> None:
    made = definition()
    fields = made["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    default = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"foo": "x"}}
    fields["embedded"] = {
        "type": "object",
        "x-kubernetes-embedded-resource": True,
        "x-kubernetes-preserve-unknown-fields": True,
        "default": default,
    }
    stored = await client.create(CUSTOMRESOURCEDEFINITIONS, made)
    schema = stored["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert schema["properties"]["spec"]["properties"]["embedded"]["default"] == {**default, "metadata": {}}


def published(made: Object) -> Any:
    """The OpenAPI v3 schemas of a definition's group-version, once it is established."""
    registry = builtin()
    names = {"singular": "widget", "listKind": "WidgetList", **made["spec"]["names"]}
    for resource in resources({**made, "status": {"acceptedNames": names}}):
        registry.add(resource)
    document = OpenApi(registry).document("apis/example.com/v1")
    assert document is not None
    return json.loads(document)["components"]["schemas"]


def test_their_schema_is_published() -> None:
    schemas = published(definition())
    properties = schemas["com.example.v1.Widget"]["properties"]
    assert properties["spec"]["properties"]["replicas"] == {"type": "integer", "minimum": 0, "default": 1}
    assert properties["metadata"]["allOf"] == [
        {"$ref": "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}
    ]
    assert properties["metadata"]["description"].startswith("Standard object's metadata.")
    mark = {"group": "example.com", "kind": "WidgetList", "version": "v1"}
    assert schemas["com.example.v1.WidgetList"]["x-kubernetes-group-version-kind"] == [mark]
