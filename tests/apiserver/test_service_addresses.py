"""A Service and the IPAddresses of its cluster IPs are one write: there together, gone together."""

from __future__ import annotations

import asyncio

import pytest

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import IPADDRESSES, SERVICECIDRS, SERVICES
from kone.apimachinery.objects import Object, name_of
from kone.store.store import Write, key_for
from tests.apiserver.conftest import Full


async def serve(full: Full, name: str = "a", **spec: object) -> Object:
    body = {"metadata": {"name": name}, "spec": {"ports": [{"port": 80}], **spec}}
    return await full.client.create(SERVICES, body, namespace="ns")


async def addresses(full: Full) -> dict[str, Object]:
    return {name_of(one): one for one in await full.client.list(IPADDRESSES)}


async def test_a_service_comes_with_its_address_in_one_commit(full: Full) -> None:
    before = full.verbs.store.revision
    service = await serve(full, clusterIP="10.96.0.5")
    assert full.verbs.store.revision == before + 2
    made = (await addresses(full))["10.96.0.5"]
    assert made["spec"] == {"parentRef": {"resource": "services", "namespace": "ns", "name": "a"}}
    assert made["metadata"]["labels"] == {
        "ipaddress.kubernetes.io/ip-family": "IPv4",
        "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
    }
    assert made["metadata"]["uid"]
    assert made["metadata"]["managedFields"][0]["manager"] == "kube-apiserver"
    assert int(made["metadata"]["resourceVersion"]) < int(service["metadata"]["resourceVersion"])


async def test_it_goes_with_the_service(full: Full) -> None:
    await serve(full)
    await full.client.delete(SERVICES, "a", namespace="ns")
    assert await addresses(full) == {}


async def test_it_stays_until_the_last_finalizer_of_the_service(full: Full) -> None:
    body = {"metadata": {"name": "a", "finalizers": ["x.io/y"]}, "spec": {"ports": [{"port": 80}]}}
    await full.client.create(SERVICES, body, namespace="ns")
    await full.client.delete(SERVICES, "a", namespace="ns")
    assert len(await addresses(full)) == 1
    await full.client.patch(SERVICES, "a", {"metadata": {"finalizers": None}}, namespace="ns")
    assert await addresses(full) == {}


async def test_a_service_that_turns_into_a_name_gives_it_back(full: Full) -> None:
    await serve(full)
    change = {"spec": {"type": "ExternalName", "externalName": "x.example.org"}}
    await full.client.patch(SERVICES, "a", change, namespace="ns")
    assert await addresses(full) == {}
    await full.client.patch(SERVICES, "a", {"spec": {"type": "ClusterIP", "externalName": None}}, namespace="ns")
    assert len(await addresses(full)) == 1


async def test_what_changes_nothing_of_addresses_writes_none(full: Full) -> None:
    await serve(full)
    before = full.verbs.store.revision
    await full.client.patch(SERVICES, "a", {"metadata": {"labels": {"x": "y"}}}, namespace="ns")
    assert full.verbs.store.revision == before + 1


async def test_an_address_that_somebody_reserved_is_taken(full: Full) -> None:
    reserved = {
        "metadata": {"name": "10.96.0.5"},
        "spec": {"parentRef": {"group": "example.org", "resource": "gateways", "name": "g"}},
    }
    await full.client.create(IPADDRESSES, reserved)
    with pytest.raises(StatusError) as refused:
        await serve(full, clusterIP="10.96.0.5")
    assert "failed to allocate IP 10.96.0.5: provided IP is already allocated" in refused.value.message
    assert full.find(SERVICES, "a") is None


async def test_who_is_overtaken_by_another_server_is_given_another_address(full: Full) -> None:
    """The other server's write is in the store, and is not seen here before our own is refused."""
    commit = full.verbs.store.commit

    async def overtaken(*writes: Write) -> object:
        full.verbs.store.commit = commit  # type: ignore[method-assign]
        key = key_for("networking.k8s.io", "ipaddresses", "", writes[0].key.rsplit("/", 1)[1])
        await commit(Write(key, {"metadata": {"name": key.rsplit("/", 1)[1]}, "spec": {}}, 0))
        return await commit(*writes)

    full.verbs.store.commit = overtaken  # type: ignore[assignment, method-assign]
    service = await serve(full)
    found = await addresses(full)
    assert len(found) == 2
    assert found[service["spec"]["clusterIP"]]["spec"]["parentRef"]["name"] == "a"


async def test_services_made_at_once_share_no_address(full: Full) -> None:
    await full.client.create(SERVICECIDRS, {"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/27"]}})
    made = await asyncio.gather(*(serve(full, f"s{n}") for n in range(30)))
    assert len({service["spec"]["clusterIP"] for service in made}) == 30
    assert len(await addresses(full)) == 30
    with pytest.raises(StatusError) as refused:
        await serve(full, "more")
    assert refused.value.message.endswith('failed to allocate a serviceIP for Service "more": range is full')
    await full.client.create(SERVICECIDRS, {"metadata": {"name": "wider"}, "spec": {"cidrs": ["192.0.2.0/28"]}})
    assert (await serve(full, "more"))["spec"]["clusterIP"].startswith("192.0.2.")


async def test_a_service_made_in_vain_leaves_nothing(full: Full) -> None:
    with pytest.raises(StatusError):
        await serve(full, "not_a_name", clusterIP="10.96.0.5")
    assert await addresses(full) == {}
    await serve(full, "a", clusterIP="10.96.0.5")
