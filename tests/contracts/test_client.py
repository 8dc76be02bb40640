"""What every Client promises: the fake in one dict, the verbs without HTTP, and HTTPS with a kubeconfig."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from kone.aio.clock import SystemClock
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import CONFIGMAPS, NAMESPACES, PODS, REPLICASETS, SERVICEACCOUNTS
from kone.apimachinery.objects import Object, is_deleting, labels_of, name_of, resource_version_of, uid_of
from kone.client.client import Client, Informer
from kone.client.http_client import HttpClient
from kone.client.kubeconfig import load_kubeconfig
from kone.testing import Cluster
from tests.fakes import FakeClient, names

NAMESPACE = "default"


@pytest.fixture(params=["fake", "local", "https"])
async def client(request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    if request.param == "fake":
        yield FakeClient(SystemClock())
        return
    async with Cluster(controllers=False, scheduler=False) as cluster:
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
        await cluster.client.create(SERVICEACCOUNTS, account, namespace=NAMESPACE)
        if request.param == "local":
            yield cluster.client
            return
        async with HttpClient(load_kubeconfig(cluster.kubeconfig)) as https:
            yield https


def config_map(name: str, data: str = "1", **meta: object) -> Object:
    metadata = {"name": name, "namespace": NAMESPACE, **meta}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"d": data}}


def pod(name: str) -> Object:
    container = {"name": "c", "image": "registry.k8s.io/pause"}
    meta = {"name": name, "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"containers": [container]}}


async def bind(client: Client) -> None:
    target = {"kind": "Node", "name": "n1"}
    binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": target}
    await client.create(PODS, binding, namespace=NAMESPACE, subresource="binding", name="p")


async def synced(informer: Informer) -> Informer:
    await asyncio.wait_for(informer.wait_synced(), 30)
    return informer


async def test_what_is_created_can_be_read(client: Client) -> None:
    made = await client.create(CONFIGMAPS, config_map("a"), namespace=NAMESPACE)
    read = await client.get(CONFIGMAPS, "a", NAMESPACE)
    assert read == made
    assert (read["kind"], read["data"]) == ("ConfigMap", {"d": "1"})
    assert uid_of(read)
    assert resource_version_of(read)
    assert read["metadata"]["creationTimestamp"].endswith("Z")


async def test_what_is_given_is_not_changed(client: Client) -> None:
    given = config_map("a")
    before = config_map("a")
    await client.create(CONFIGMAPS, given, namespace=NAMESPACE)
    assert given == before


async def test_a_generated_name_starts_as_asked(client: Client) -> None:
    given = config_map("x")
    del given["metadata"]["name"]
    given["metadata"]["generateName"] = "web-"
    made = await client.create(CONFIGMAPS, given, namespace=NAMESPACE)
    assert name_of(made).startswith("web-")
    assert len(name_of(made)) == len("web-") + 5


async def test_a_name_can_be_taken_once(client: Client) -> None:
    await client.create(CONFIGMAPS, config_map("a"), namespace=NAMESPACE)
    with pytest.raises(StatusError) as caught:
        await client.create(CONFIGMAPS, config_map("a"), namespace=NAMESPACE)
    assert (caught.value.code, caught.value.reason) == (409, "AlreadyExists")
    assert caught.value.message == 'configmaps "a" already exists'


async def test_what_is_not_there_is_not_found(client: Client) -> None:
    for call in (
        client.get(CONFIGMAPS, "a", NAMESPACE),
        client.update(CONFIGMAPS, config_map("a")),
        client.patch(CONFIGMAPS, "a", {}, namespace=NAMESPACE),
        client.delete(CONFIGMAPS, "a", namespace=NAMESPACE),
    ):
        with pytest.raises(StatusError) as caught:
            await call
        assert (caught.value.code, caught.value.reason) == (404, "NotFound")
        assert caught.value.message == 'configmaps "a" not found'


async def test_lists_are_sorted_and_narrowed_by_selectors(client: Client) -> None:
    for name, team in (("b", "x"), ("a", "x"), ("c", "y")):
        await client.create(CONFIGMAPS, config_map(name, labels={"team": team}), namespace=NAMESPACE)
    assert names(await client.list(CONFIGMAPS, NAMESPACE)) == ["a", "b", "c"]
    assert names(await client.list(CONFIGMAPS, NAMESPACE, labels="team=x")) == ["a", "b"]
    assert names(await client.list(CONFIGMAPS, NAMESPACE, fields="metadata.name=c")) == ["c"]
    assert names(await client.list(CONFIGMAPS, "elsewhere")) == []
    assert all(found["kind"] == "ConfigMap" for found in await client.list(CONFIGMAPS, labels="team"))


async def test_an_update_of_an_older_state_is_a_conflict(client: Client) -> None:
    first = await client.create(CONFIGMAPS, config_map("a"), namespace=NAMESPACE)
    second = await client.update(CONFIGMAPS, {**first, "data": {"d": "2"}})
    assert int(resource_version_of(second)) > int(resource_version_of(first))
    with pytest.raises(StatusError) as caught:
        await client.update(CONFIGMAPS, {**first, "data": {"d": "3"}})
    assert (caught.value.code, caught.value.reason) == (409, "Conflict")
    assert (await client.get(CONFIGMAPS, "a", NAMESPACE))["data"] == {"d": "2"}


async def test_an_update_that_changes_nothing_writes_nothing(client: Client) -> None:
    first = await client.create(CONFIGMAPS, config_map("a"), namespace=NAMESPACE)
    assert resource_version_of(await client.update(CONFIGMAPS, first)) == resource_version_of(first)


async def test_the_three_kinds_of_patches(client: Client) -> None:
    await client.create(CONFIGMAPS, config_map("a", finalizers=["a.example.com/x"]), namespace=NAMESPACE)
    merged = await client.patch(CONFIGMAPS, "a", {"data": {"d": None, "e": "2"}}, namespace=NAMESPACE)
    assert merged["data"] == {"e": "2"}
    more = {"metadata": {"finalizers": ["b.example.com/x"]}}
    strategic = await client.patch(CONFIGMAPS, "a", more, namespace=NAMESPACE, kind="strategic")
    assert sorted(strategic["metadata"]["finalizers"]) == ["a.example.com/x", "b.example.com/x"]
    operations = [{"op": "replace", "path": "/data/e", "value": "3"}, {"op": "remove", "path": "/metadata/finalizers"}]
    patched = await client.patch(CONFIGMAPS, "a", operations, namespace=NAMESPACE, kind="json")
    assert (patched["data"], patched["metadata"].get("finalizers")) == ({"e": "3"}, None)


async def test_status_is_written_apart_from_the_spec(client: Client) -> None:
    made = await client.create(PODS, pod("p"), namespace=NAMESPACE)
    status = {**(made.get("status") or {}), "message": "hello"}
    told = await client.update(PODS, {**made, "status": status, "spec": {}}, subresource="status")
    assert told["status"]["message"] == "hello"
    assert told["spec"]["containers"][0]["image"] == "registry.k8s.io/pause"
    kept = await client.update(PODS, {**told, "status": {"message": "other"}})
    assert kept["status"]["message"] == "hello"
    patched = await client.patch(PODS, "p", {"status": {"message": "third"}}, namespace=NAMESPACE, subresource="status")
    assert patched["status"]["message"] == "third"


async def test_a_finalizer_holds_what_is_deleted_until_it_is_taken_off(client: Client) -> None:
    await client.create(CONFIGMAPS, config_map("a", finalizers=["example.com/hold"]), namespace=NAMESPACE)
    await client.delete(CONFIGMAPS, "a", namespace=NAMESPACE)
    held = await client.get(CONFIGMAPS, "a", NAMESPACE)
    assert is_deleting(held)
    await client.patch(CONFIGMAPS, "a", {"metadata": {"finalizers": None}}, namespace=NAMESPACE)
    assert await client.list(CONFIGMAPS, NAMESPACE) == []


@pytest.mark.parametrize(("propagation", "finalizer"), [("Foreground", "foregroundDeletion"), ("Orphan", "orphan")])
async def test_propagation_becomes_a_finalizer(client: Client, propagation: str, finalizer: str) -> None:
    await client.create(CONFIGMAPS, config_map("a"), namespace=NAMESPACE)
    await client.delete(CONFIGMAPS, "a", namespace=NAMESPACE, propagation=propagation)  # type: ignore[arg-type]
    assert (await client.get(CONFIGMAPS, "a", NAMESPACE))["metadata"]["finalizers"] == [finalizer]


async def test_preconditions_of_a_deletion(client: Client) -> None:
    first = await client.create(CONFIGMAPS, config_map("a"), namespace=NAMESPACE)
    for wrong in ({"uid": "another"}, {"resource_version": "1"}):
        with pytest.raises(StatusError) as caught:
            await client.delete(CONFIGMAPS, "a", namespace=NAMESPACE, **wrong)
        assert (caught.value.code, caught.value.reason) == (409, "Conflict")
    version = resource_version_of(first)
    await client.delete(CONFIGMAPS, "a", namespace=NAMESPACE, uid=uid_of(first), resource_version=version)
    assert await client.list(CONFIGMAPS, NAMESPACE) == []


async def test_a_collection_is_deleted_as_far_as_it_is_selected(client: Client) -> None:
    for name, team in (("a", "x"), ("b", "x"), ("c", "y")):
        await client.create(CONFIGMAPS, config_map(name, labels={"team": team}), namespace=NAMESPACE)
    await client.delete_collection(CONFIGMAPS, namespace=NAMESPACE, labels="team=x")
    assert names(await client.list(CONFIGMAPS, NAMESPACE)) == ["c"]


async def test_binding_and_graceful_deletion_of_a_pod(client: Client) -> None:
    await client.create(PODS, pod("p"), namespace=NAMESPACE)
    binding = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": "p"},
        "target": {"kind": "Node", "name": "n1"},
    }
    await client.create(PODS, binding, namespace=NAMESPACE, subresource="binding", name="p")
    assert (await client.get(PODS, "p", NAMESPACE))["spec"]["nodeName"] == "n1"
    await client.delete(PODS, "p", namespace=NAMESPACE, grace_s=20)
    leaving = await client.get(PODS, "p", NAMESPACE)
    assert is_deleting(leaving)
    assert leaving["metadata"]["deletionGracePeriodSeconds"] == 20
    await client.delete(PODS, "p", namespace=NAMESPACE, grace_s=0)
    assert await client.list(PODS, NAMESPACE) == []


async def test_eviction_deletes_the_pod(client: Client) -> None:
    await client.create(PODS, pod("p"), namespace=NAMESPACE)
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p", "namespace": NAMESPACE}}
    await client.create(PODS, eviction, namespace=NAMESPACE, subresource="eviction", name="p")
    assert await client.list(PODS, NAMESPACE) == []


async def test_cluster_scoped_objects_have_no_namespace(client: Client) -> None:
    await client.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})
    assert name_of(await client.get(NAMESPACES, "shop")) == "shop"
    informer = await synced(client.informer(NAMESPACES))
    assert informer.get("", "shop") is not None


# Informers


async def test_an_informer_shows_each_write_before_the_write_returns(client: Client) -> None:
    informer = await synced(client.informer(CONFIGMAPS))
    for number in range(5):
        made = await client.create(CONFIGMAPS, config_map(f"c{number}"), namespace=NAMESPACE)
        assert informer.get(NAMESPACE, f"c{number}") == made
        made = await client.update(CONFIGMAPS, {**made, "data": {"d": "2"}})
        assert informer.get(NAMESPACE, f"c{number}") == made
        made = await client.patch(CONFIGMAPS, f"c{number}", {"data": {"d": "3"}}, namespace=NAMESPACE)
        assert informer.get(NAMESPACE, f"c{number}") == made
        await client.delete(CONFIGMAPS, f"c{number}", namespace=NAMESPACE)
        assert informer.get(NAMESPACE, f"c{number}") is None


async def test_a_handler_is_told_of_what_is_there_and_of_each_change(client: Client) -> None:
    await client.create(CONFIGMAPS, config_map("a"), namespace=NAMESPACE)
    informer = await synced(client.informer(CONFIGMAPS))
    told: list[tuple[str, str, str | None]] = []

    def handler(kind: str, obj: Object, previous: Object | None) -> None:
        if name_of(obj) in ("a", "b"):
            told.append((kind, obj["data"]["d"], previous["data"]["d"] if previous is not None else None))

    unsubscribe = informer.subscribe(handler)
    assert told == [("ADDED", "1", None)]
    made = await client.create(CONFIGMAPS, config_map("b"), namespace=NAMESPACE)
    await client.update(CONFIGMAPS, {**made, "data": {"d": "2"}})
    await client.delete(CONFIGMAPS, "b", namespace=NAMESPACE)
    assert told[1:] == [("ADDED", "1", None), ("MODIFIED", "2", "1"), ("DELETED", "2", "2")]
    unsubscribe()
    await client.delete(CONFIGMAPS, "a", namespace=NAMESPACE)
    assert len(told) == 4


async def test_an_informer_is_shared(client: Client) -> None:
    assert client.informer(CONFIGMAPS) is client.informer(CONFIGMAPS)


async def test_an_index_follows_its_objects(client: Client) -> None:
    informer = await synced(client.informer(CONFIGMAPS))
    made = await client.create(CONFIGMAPS, config_map("a", labels={"team": "x"}), namespace=NAMESPACE)
    informer.add_index("team", lambda obj: [team] if (team := labels_of(obj).get("team")) else [])
    assert names(informer.by_index("team", "x")) == ["a"]
    moved = {**made, "metadata": {**made["metadata"], "labels": {"team": "y"}}}
    await client.update(CONFIGMAPS, moved)
    assert (informer.by_index("team", "x"), names(informer.by_index("team", "y"))) == ([], ["a"])
    await client.delete(CONFIGMAPS, "a", namespace=NAMESPACE)
    assert informer.by_index("team", "y") == []
    with pytest.raises(KeyError):
        informer.by_index("no such index", "y")


async def test_a_narrowed_informer_shows_what_comes_and_goes_by_its_fields(client: Client) -> None:
    informer = await synced(client.informer(PODS, fields="spec.nodeName=n1"))
    told: list[str] = []
    informer.subscribe(lambda kind, obj, previous: told.append(kind))
    await client.create(PODS, pod("p"), namespace=NAMESPACE)
    assert informer.list() == []
    binding = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": "p"},
        "target": {"kind": "Node", "name": "n1"},
    }
    await client.create(PODS, binding, namespace=NAMESPACE, subresource="binding", name="p")
    for _ in range(3000):
        if informer.list():
            break
        await asyncio.sleep(0.01)
    assert (names(informer.list()), told) == (["p"], ["ADDED"])


async def test_the_scale_of_what_has_replicas_and_of_nothing_else(client: Client) -> None:
    template = {"metadata": {"labels": {"app": "a"}}, "spec": pod("p")["spec"]}
    spec = {"replicas": 3, "selector": {"matchLabels": {"app": "a"}}, "template": template}
    meta = {"name": "rs", "namespace": NAMESPACE}
    replica_set = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": meta, "spec": spec}
    made = await client.create(REPLICASETS, replica_set, namespace=NAMESPACE)
    scale = await client.get(REPLICASETS, "rs", NAMESPACE, subresource="scale")
    assert (scale["kind"], uid_of(scale), scale["spec"]) == ("Scale", uid_of(made), {"replicas": 3})
    assert scale["status"] == {"replicas": 0, "selector": "app=a"}
    await client.update(REPLICASETS, {**scale, "spec": {"replicas": 5}}, subresource="scale")
    assert (await client.get(REPLICASETS, "rs", NAMESPACE))["spec"]["replicas"] == 5
    await client.create(CONFIGMAPS, config_map("a"), namespace=NAMESPACE)
    with pytest.raises(StatusError) as refused:
        await client.get(CONFIGMAPS, "a", NAMESPACE, subresource="scale")
    assert refused.value.code == 404
