"""Custom resources of several versions: what is stored in one is read, watched and written in another, by a webhook or
by name alone, and owned by version."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest

from kone.admission.webhooks import CallFailed
from kone.aio.clock import FakeClock
from kone.apimachinery.errors import StatusError
from kone.apimachinery.field_sets import paths
from kone.apimachinery.kinds import CUSTOMRESOURCEDEFINITIONS, GVR
from kone.apimachinery.objects import Object
from kone.apimachinery.patch import Patch
from kone.apiserver.context import RequestContext
from kone.apiserver.conversion_webhook import BadAnswer, accepted, converted_objects, review
from kone.apiserver.custom_resources import CustomResources
from kone.apiserver.options import ListOptions
from kone.cache.watch_cache import WatchCache
from kone.registry.resource import Resource
from tests.apiserver.conftest import ADMIN, Full

KINDS = {"v1": GVR("example.com", "v1", "hosts"), "v2": GVR("example.com", "v2", "hosts")}


def version(name: str, *, storage: bool = False, served: bool = True, **properties: Any) -> Object:
    schema = {"type": "object", "properties": {"spec": {"type": "object", "properties": properties}}}
    return {"name": name, "served": served, "storage": storage, "schema": {"openAPIV3Schema": schema}}


TEXT = {"type": "string"}
V1 = version("v1", storage=True, hostPort=TEXT)
V2 = version("v2", host=TEXT, port=TEXT)
WEBHOOK = {
    "strategy": "Webhook",
    "webhook": {"conversionReviewVersions": ["v1"], "clientConfig": {"url": "https://hook.example/convert"}},
}


def definition(*versions: Object, conversion: Object = WEBHOOK) -> Object:
    names = {"plural": "hosts", "kind": "Host", "singular": "host", "listKind": "HostList"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "hosts.example.com"},
        "spec": {
            "group": "example.com",
            "scope": "Namespaced",
            "names": names,
            "versions": copy.deepcopy(list(versions)),
            "conversion": conversion,
        },
        "status": {
            "acceptedNames": names,
            "storedVersions": [each["name"] for each in versions if each["storage"]],
            "conditions": [{"type": "Established", "status": "True"}, {"type": "NamesAccepted", "status": "True"}],
        },
    }


def host(name: str = "h", api_version: str = "example.com/v1", **spec: Any) -> Object:
    return {"apiVersion": api_version, "kind": "Host", "metadata": {"name": name}, "spec": spec}


class Hook:
    """The webhook: "hostPort" of v1 is "host" and "port" of v2. `spoil` changes its answers."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.down = False
        self.spoil: Callable[[Object], None] = lambda answer: None

    async def call(self, config: Mapping[str, Any], body: Object, *, timeout_s: float) -> Any:
        if self.down:
            raise CallFailed('Post "https://hook.example/convert?timeout=30s": EOF')
        assert (config["url"], timeout_s) == ("https://hook.example/convert", 30.0)
        request = body["request"]
        self.asked.append([obj["metadata"]["name"] for obj in request["objects"]])
        objects = [_converted(copy.deepcopy(obj), request["desiredAPIVersion"]) for obj in request["objects"]]
        response = {"uid": request["uid"], "result": {"status": "Success"}, "convertedObjects": objects}
        answer = {"apiVersion": body["apiVersion"], "kind": body["kind"], "response": response}
        self.spoil(answer)
        return answer


def _converted(obj: Object, api_version: str) -> Object:
    spec = obj.pop("spec", {})
    if api_version.endswith("v2"):
        spec = dict(zip(("host", "port"), spec.get("hostPort", "").split(":"), strict=False))
    else:
        spec = {"hostPort": f"{spec.get('host', '')}:{spec.get('port', '')}"}
    return {**obj, "apiVersion": api_version, "spec": spec}


class World:
    """Verbs that serve the definition, and what tests do with them."""

    def __init__(self, full: Full, hook: Hook) -> None:
        self.verbs, self.hook = full.verbs, hook
        self.custom = CustomResources(self.verbs, FakeClock(), ADMIN, hook)
        definitions = self.verbs.registry.get(CUSTOMRESOURCEDEFINITIONS)
        assert definitions is not None
        self._definitions: Resource = definitions

    async def define(self, made: Object) -> None:
        """Create the definition, or make it say this."""
        name = made["metadata"]["name"]
        if self.verbs.cache(self._definitions).get("", name) is None:
            await self.verbs.create(self.ctx(), self._definitions, made)
        await self.verbs.overwrite(self.ctx(), self._definitions, name, lambda live: {**made, **_kept(live)})

    def ctx(self, manager: str = "tester", *, force: bool = False) -> RequestContext:
        return RequestContext(ADMIN, field_manager=manager, force=force)

    def resource(self, at: str) -> Resource:
        found = self.verbs.registry.get(KINDS[at])
        assert found is not None
        return found

    @property
    def stored(self) -> WatchCache:
        return self.verbs.caches.of("example.com", "hosts")

    async def create(self, at: str, obj: Object) -> Object:
        return (await self.verbs.create(self.ctx(), self.resource(at), obj, namespace="ns")).obj

    async def get(self, at: str, name: str = "h") -> Object:
        return (await self.verbs.get(self.resource(at), name, "ns")).obj

    async def apply(self, at: str, manager: str, *, force: bool = False, **spec: Any) -> Object:
        config = host("h", f"example.com/{at}", **spec)
        answer = await self.verbs.apply(self.ctx(manager, force=force), self.resource(at), "h", config, namespace="ns")
        return answer.obj

    async def specs(self, at: str, **options: Any) -> list[Object]:
        page = await self.verbs.list(self.resource(at), ListOptions(**options), namespace="ns")
        return [entry.obj["spec"] for entry in page.entries]


def _kept(live: Object) -> Object:
    return {"metadata": live["metadata"]}


@pytest.fixture
async def world(full: Full) -> AsyncIterator[World]:
    made = World(full, Hook())
    made.custom.start()
    await made.define(definition(V1, V2))
    yield made
    await made.custom.stop()


# -- by a webhook -----------------------------------------------------------------------------------------------------


async def test_what_is_written_in_one_version_is_read_in_the_other(world: World) -> None:
    made = await world.create("v1", host(hostPort="a:1"))
    assert made["spec"] == {"hostPort": "a:1"}
    assert world.hook.asked == [], "what is stored is what was spoken"
    found = await world.get("v2")
    assert (found["apiVersion"], found["spec"]) == ("example.com/v2", {"host": "a", "port": "1"})
    assert found["metadata"] == made["metadata"]


async def test_what_is_written_in_the_other_version_is_stored_in_the_first(world: World) -> None:
    made = await world.create("v2", host(api_version="example.com/v2", host="a", port="1"))
    assert (made["apiVersion"], made["spec"]) == ("example.com/v2", {"host": "a", "port": "1"})
    [entry] = world.stored.list()
    assert (entry.obj["apiVersion"], entry.obj["spec"]) == ("example.com/v1", {"hostPort": "a:1"})
    changed = await world.verbs.patch(
        world.ctx(), world.resource("v2"), "h", Patch("merge", {"spec": {"port": "2"}}), namespace="ns"
    )
    assert changed.obj["spec"] == {"host": "a", "port": "2"}
    assert (await world.get("v1"))["spec"] == {"hostPort": "a:2"}


async def test_lists_ask_once_for_many_and_selectors_see_the_version_asked_for(world: World) -> None:
    for name in ("a", "b", "c"):
        await world.create("v1", host(name, hostPort=f"{name}:1"))
    assert await world.specs("v2") == [{"host": name, "port": "1"} for name in ("a", "b", "c")]
    assert world.hook.asked == [["a", "b", "c"]]
    assert await world.specs("v2", fields="metadata.name=b") == [{"host": "b", "port": "1"}]
    assert await world.specs("v2", limit=1) == [{"host": "a", "port": "1"}]
    assert len(world.hook.asked) == 1, "a state is converted once"


async def test_objects_of_several_stored_versions_are_one_list(world: World) -> None:
    await world.create("v1", host("a", hostPort="a:1"))
    await world.define(definition({**V1, "storage": False}, {**V2, "storage": True}))
    await world.create("v1", host("b", hostPort="b:1"))
    assert [entry.obj["apiVersion"] for entry in world.stored.list()] == ["example.com/v1", "example.com/v2"]
    assert await world.specs("v1") == [{"hostPort": "a:1"}, {"hostPort": "b:1"}]
    assert await world.specs("v2") == [{"host": "a", "port": "1"}, {"host": "b", "port": "1"}]


async def test_a_write_that_changes_nothing_moves_an_object_to_the_stored_version(world: World) -> None:
    await world.create("v1", host(hostPort="a:1"))
    await world.define(definition({**V1, "storage": False}, {**V2, "storage": True}))
    await world.verbs.update(world.ctx(), world.resource("v1"), "h", await world.get("v1"), namespace="ns")
    [entry] = world.stored.list()
    assert (entry.obj["apiVersion"], entry.obj["spec"]) == ("example.com/v2", {"host": "a", "port": "1"})


async def test_watches_show_their_version(world: World) -> None:
    await world.create("v1", host("a", hostPort="a:1"))
    watches = {at: world.verbs.watch(world.resource(at), ListOptions(), namespace="ns") for at in KINDS}
    initial = {at: [event.obj["spec"] for event in await watch.initial()] for at, watch in watches.items()}
    assert initial == {"v1": [{"hostPort": "a:1"}], "v2": [{"host": "a", "port": "1"}]}
    await world.create("v1", host("b", hostPort="b:1"))
    seen = {at: [event.obj["spec"] for event in await watch.next(5)] for at, watch in watches.items()}
    assert seen == {"v1": [{"hostPort": "b:1"}], "v2": [{"host": "b", "port": "1"}]}


async def test_a_webhook_that_is_down_fails_what_needs_it_and_nothing_else(world: World) -> None:
    await world.create("v1", host(hostPort="a:1"))
    world.hook.down = True
    assert (await world.get("v1"))["spec"] == {"hostPort": "a:1"}
    text = (
        'conversion webhook for example.com/v1, Kind=Host failed: Post "https://hook.example/convert?timeout=30s": EOF'
    )
    watch = world.verbs.watch(world.resource("v2"), ListOptions(), namespace="ns")
    for reading in (world.get("v2"), world.specs("v2"), watch.initial()):
        with pytest.raises(StatusError) as caught:
            await reading
        assert (caught.value.code, caught.value.reason, str(caught.value)) == (500, "", text)
    with pytest.raises(StatusError, match=r"conversion webhook for example\.com/v2, Kind=Host failed"):
        await world.create("v2", host("new", "example.com/v2", host="a", port="1"))
    world.hook.down = False
    assert (await world.get("v2"))["spec"] == {"host": "a", "port": "1"}


async def test_a_definition_goes_though_its_webhook_is_down(world: World) -> None:
    await world.create("v1", host(hostPort="a:1"))
    world.hook.down = True
    await world.verbs.delete(world.ctx(), world._definitions, "hosts.example.com")
    watch = world.verbs.watch(world._definitions, ListOptions())
    async with asyncio.timeout(5):
        while world.verbs.cache(world._definitions).list():
            await watch.next(1)
    assert len(world.stored) == 0


def bad(change: Callable[[Object], None]) -> str:
    """What is said of a converted object that was changed so."""
    original = host(hostPort="a:1")
    original["metadata"] |= {"uid": "u", "namespace": "ns", "labels": {"a": "1"}}
    made = _converted(copy.deepcopy(original), "example.com/v2")
    change(made)
    with pytest.raises(BadAnswer) as caught:
        accepted(original, made, "example.com/v2")
    return str(caught.value)


def test_only_labels_and_annotations_may_be_changed() -> None:
    original = {**host(hostPort="a:1"), "metadata": {"name": "h", "labels": {"a": "1"}, "generation": 3}}
    made = {
        **_converted(copy.deepcopy(original), "example.com/v2"),
        "metadata": {"name": "h", "annotations": {"k": "v"}, "generation": 9, "finalizers": ["x/y"]},
    }
    found = accepted(original, made, "example.com/v2")
    assert found["metadata"] == {"name": "h", "generation": 3, "annotations": {"k": "v"}}


def test_what_is_refused_of_converted_objects() -> None:
    assert bad(lambda o: o.update(apiVersion="example.com/v3")) == (
        "object at index 0: invalid groupVersion (expected example.com/v2, received example.com/v3)"
    )
    assert bad(lambda o: o.update(kind="Other")) == "object at index 0: invalid kind (expected Host, received Other)"
    assert bad(lambda o: o["metadata"].update(name="x")) == "object: must have the same name: h != x"
    assert bad(lambda o: o["metadata"].update(namespace="x")) == "object: must have the same namespace: ns != x"
    assert bad(lambda o: o["metadata"].update(uid="x")) == "object: must have the same UID: u != x"
    assert bad(lambda o: o["metadata"].update(labels=[])) == (
        "metadata: invalid metadata.labels of type []interface {} in converted object"
    )
    assert bad(lambda o: o["metadata"].update(labels={"a": 1})) == (
        "metadata: metadata.labels[a] must be a string, but is int64 in converted object"
    )
    assert "metadata: metadata.labels: Invalid value" in bad(lambda o: o["metadata"].update(labels={"a b": "1"}))


def test_what_is_refused_of_answers() -> None:
    sent = review([host()], "example.com/v2", "v1", "u")
    head = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview"}
    kind = "apiextensions.k8s.io/v1, Kind=ConversionReview"
    refused = (
        ({"kind": "ConversionReview"}, f"expected webhook response of {kind}, got /, Kind=ConversionReview"),
        (head, "no response provided"),
        ({**head, "response": {"uid": "v"}}, 'expected response.uid="u", got "v"'),
        ({**head, "response": {"uid": "u"}}, "response.result.status was '', not 'Success'"),
        ({**head, "response": {"uid": "u", "result": {"status": "Failed", "message": "no way"}}}, "no way"),
    )
    for answer, text in refused:
        with pytest.raises(BadAnswer) as caught:
            converted_objects(answer, sent)
        assert str(caught.value) == text


async def test_too_few_objects_are_no_answer(world: World) -> None:
    await world.create("v1", host(hostPort="a:1"))
    world.hook.spoil = lambda answer: answer["response"].update(convertedObjects=[])
    with pytest.raises(StatusError) as caught:
        await world.get("v2")
    assert str(caught.value) == "conversion webhook for example.com/v1, Kind=Host returned 0 objects, expected 1"


# -- who owns what, by version ----------------------------------------------------------------------------------------


def owners(obj: Object) -> dict[str, tuple[str, list[str]]]:
    entries = obj["metadata"]["managedFields"]
    return {entry["manager"]: (entry["apiVersion"], list(paths(entry["fieldsV1"]))) for entry in entries}


async def test_fields_are_owned_in_the_version_that_their_owner_speaks(world: World) -> None:
    await world.apply("v1", "one", hostPort="a:1")
    with pytest.raises(StatusError) as caught:
        await world.apply("v2", "two", host="b", port="1")
    assert caught.value.reason == "Conflict"
    assert str(caught.value) == 'Apply failed with 1 conflict: conflict with "one": .spec.hostPort'
    taken = await world.apply("v2", "two", force=True, host="b", port="1")
    assert owners(taken) == {"two": ("example.com/v2", [".spec.host", ".spec.port"])}
    assert (await world.get("v1"))["spec"] == {"hostPort": "b:1"}


async def test_who_applies_in_another_version_than_last_time_loses_what_is_no_longer_said(world: World) -> None:
    await world.apply("v2", "one", host="a", port="1")
    changed = await world.apply("v1", "one", hostPort="a:1")
    assert owners(changed) == {"one": ("example.com/v1", [".spec.hostPort"])}
    assert (await world.get("v2"))["spec"] == {"host": "a", "port": "1"}


async def test_an_update_takes_from_owners_of_other_versions(world: World) -> None:
    await world.apply("v2", "one", host="a", port="1")
    patch = Patch("merge", {"spec": {"hostPort": "b:1"}})
    changed = await world.verbs.patch(world.ctx("two"), world.resource("v1"), "h", patch, namespace="ns")
    assert owners(changed.obj) == {
        "one": ("example.com/v2", [".spec.port"]),
        "two": ("example.com/v1", [".spec.hostPort"]),
    }


async def test_fields_of_a_version_that_is_no_more_are_nobodys(world: World) -> None:
    await world.apply("v2", "one", host="a", port="1")
    await world.define(definition(V1))
    patch = Patch("merge", {"spec": {"hostPort": "b:1"}})
    changed = await world.verbs.patch(world.ctx("two"), world.resource("v1"), "h", patch, namespace="ns")
    assert list(owners(changed.obj)) == ["two"]


# -- as the schema reads it today -------------------------------------------------------------------------------------


async def test_a_default_that_comes_later_is_seen_on_what_is_stored(world: World) -> None:
    await world.create("v1", host(hostPort="a:1"))
    later = copy.deepcopy(V1)
    later["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["zone"] = {**TEXT, "default": "z"}
    await world.define(definition(later, conversion={"strategy": "None"}))
    wanted = {"hostPort": "a:1", "zone": "z"}
    assert (await world.get("v1"))["spec"] == wanted
    assert await world.specs("v1") == [wanted]
    watch = world.verbs.watch(world.resource("v1"), ListOptions(), namespace="ns")
    assert [event.obj["spec"] for event in await watch.initial()] == [wanted]
    assert world.stored.list()[0].obj["spec"] == {"hostPort": "a:1"}, "reading writes nothing"


async def test_a_field_that_left_the_schema_is_seen_no_more(world: World) -> None:
    await world.create("v1", host(hostPort="a:1"))
    await world.define(definition(version("v1", storage=True, other=TEXT)))
    assert (await world.get("v1"))["spec"] == {}


async def test_without_a_webhook_versions_differ_by_name_and_by_what_they_know(world: World) -> None:
    both = version("v2", hostPort=TEXT, port={**TEXT, "default": "80"})
    await world.define(definition(V1, both, conversion={"strategy": "None"}))
    await world.create("v1", host(hostPort="a:1"))
    found = await world.get("v2")
    assert (found["apiVersion"], found["spec"]) == ("example.com/v2", {"hostPort": "a:1"}), "defaults are v1's"
    assert world.hook.asked == []


async def test_what_is_applied_must_be_known_to_the_versions_of_others_where_only_names_differ(world: World) -> None:
    fields = {"a": TEXT, "b": TEXT}
    await world.define(
        definition(version("v1", storage=True, a=TEXT), version("v2", **fields), conversion={"strategy": "None"})
    )
    await world.apply("v1", "one", a="x")
    await world.apply("v2", "two", force=True, a="y")
    await world.apply("v1", "one", force=True, a="x")
    with pytest.raises(StatusError) as refused:
        await world.apply("v2", "two", b="z")
    assert (refused.value.code, refused.value.message) == (
        500,
        "failed to convert new object: .spec.b: field not declared in schema",
    )


async def test_who_applies_no_metadata_any_more_in_another_version_loses_it(world: World) -> None:
    await world.define(definition(version("v1", storage=True, a=TEXT), version("v2", a=TEXT), conversion={}))
    config = host(a="x")
    config["metadata"]["finalizers"] = ["example.com/f"]
    await world.verbs.apply(world.ctx("one"), world.resource("v1"), "h", config, namespace="ns")
    taken = await world.apply("v2", "one", a="y")
    assert (taken["spec"], taken["metadata"].get("finalizers")) == ({"a": "y"}, None)
