"""Kinds that are added while the controllers run: they are collected, emptied with their namespace, and counted."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import CONFIGMAPS, CUSTOMRESOURCEDEFINITIONS, NAMESPACES, RESOURCEQUOTAS
from kone.apimachinery.objects import Object, dig, find_condition, replace_in, uid_of
from kone.controllers.storage_version_migrator import MIGRATIONS
from kone.testing import Cluster
from tests.testing.test_clients import DEFINITION, WIDGETS, eventually

HOLD = "example.com/hold"


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with Cluster(scheduler=False) as running:
        await running.client.create(CUSTOMRESOURCEDEFINITIONS, DEFINITION)
        await running.client.create(NAMESPACES, {"metadata": {"name": "ns"}})
        yield running


async def make(cluster: Cluster, name: str, **metadata: object) -> Object:
    """As soon as the kind is served."""
    widget = {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name, **metadata}, "spec": {}}

    async def create() -> Object:
        return await cluster.client.create(WIDGETS, widget, namespace="ns")

    found: Object = await eventually(create)
    return found


async def is_gone(cluster: Cluster, resource: object, name: str) -> bool:
    try:
        await cluster.client.get(resource, name, "ns")  # type: ignore[arg-type]
    except StatusError as error:
        return error.code == 404
    return False


async def test_what_depends_on_one_goes_with_it_and_in_the_foreground_before_it(cluster: Cluster) -> None:
    owner = await make(cluster, "owner")
    reference = {"apiVersion": "example.com/v1", "kind": "Widget", "name": "owner", "uid": uid_of(owner)}
    for name, blocks in (("held", True), ("loose", False)):
        meta = {"name": name, "ownerReferences": [{**reference, "blockOwnerDeletion": blocks}]}
        meta |= {"finalizers": [HOLD]} if blocks else {}
        await cluster.client.create(CONFIGMAPS, {"metadata": meta}, namespace="ns")
    await cluster.client.delete(WIDGETS, "owner", namespace="ns", propagation="Foreground")
    await eventually(lambda: is_gone(cluster, CONFIGMAPS, "loose"))

    async def is_going() -> bool:
        held = await cluster.client.get(CONFIGMAPS, "held", "ns")
        return "deletionTimestamp" in held["metadata"]

    await eventually(is_going)
    assert (await cluster.client.get(WIDGETS, "owner", "ns"))["metadata"]["finalizers"] == ["foregroundDeletion"]
    await cluster.client.patch(CONFIGMAPS, "held", {"metadata": {"finalizers": None}}, namespace="ns")
    await eventually(lambda: is_gone(cluster, WIDGETS, "owner"))


async def test_a_namespace_waits_for_its_objects_and_says_so(cluster: Cluster) -> None:
    await make(cluster, "held", finalizers=[HOLD])
    await make(cluster, "loose")
    await cluster.client.delete(NAMESPACES, "ns")

    async def told() -> tuple[str, str] | None:
        namespace = await cluster.client.get(NAMESPACES, "ns")
        found = [find_condition(namespace, f"Namespace{kind}") for kind in ("ContentRemaining", "FinalizersRemaining")]
        if any(condition is None or condition["status"] != "True" for condition in found):
            return None
        return found[0]["message"], found[1]["message"]  # type: ignore[index]

    assert await eventually(told) == (
        "Some resources are remaining: widgets.example.com has 1 resource instances",
        f"Some content in the namespace has finalizers remaining: {HOLD} in 1 resource instances",
    )
    await cluster.client.patch(WIDGETS, "held", {"metadata": {"finalizers": None}}, namespace="ns")

    async def gone() -> bool:
        return all(each["metadata"]["name"] != "ns" for each in await cluster.client.list(NAMESPACES))

    await eventually(gone)


async def test_a_quota_counts_them(cluster: Cluster) -> None:
    name = "count/widgets.example.com"
    quota = {"metadata": {"name": "q"}, "spec": {"hard": {name: "1"}}}
    await cluster.client.create(RESOURCEQUOTAS, quota, namespace="ns")
    first = await make(cluster, "first")

    async def used() -> bool:
        found = await cluster.client.get(RESOURCEQUOTAS, "q", "ns")
        return bool(dig(found, "status", "used") == {name: "1"})

    await eventually(used)
    second = replace_in(first, ("metadata",), {"name": "second"})
    with pytest.raises(StatusError, match=f"exceeded quota: q, requested: {name}=1, used: {name}=1, limited: {name}=1"):
        await cluster.client.create(WIDGETS, second, namespace="ns")


async def test_their_stored_version_is_migrated(cluster: Cluster) -> None:
    await make(cluster, "first")
    migration = {
        "apiVersion": "storagemigration.k8s.io/v1",
        "kind": "StorageVersionMigration",
        "metadata": {"name": "m"},
        "spec": {"resource": {"group": "example.com", "resource": "widgets"}},
    }
    await cluster.client.create(MIGRATIONS, migration)

    async def is_done() -> bool:
        found = await cluster.client.get(MIGRATIONS, "m")
        return (find_condition(found, "Succeeded") or {}).get("status") == "True"

    await eventually(is_done)
