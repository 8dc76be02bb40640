"""The repair of what people, or an older kone, left between Services and IPAddresses."""

from __future__ import annotations

import pytest

from kone.apimachinery.ip_addresses import ip_address_of
from kone.apimachinery.kinds import IPADDRESSES, SERVICECIDRS, SERVICES
from kone.apimachinery.objects import Object, dig, name_of
from kone.controllers.ip_addresses import ADDRESS_REPAIR, SERVICE_ADDRESS_REPAIR
from tests.controllers.world import World

RANGE: Object = {"kind": "ServiceCIDR", "metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.0.0.0/24"]}}


def service(name: str = "a", ip: str = "10.0.0.5") -> Object:
    spec = {"clusterIP": ip, "clusterIPs": [ip]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "ns"}, "spec": spec}


def parents(world: World) -> dict[str, str]:
    return {name_of(one): dig(one, "spec", "parentRef", "name") for one in world.client.of(IPADDRESSES)}


@pytest.fixture
async def repaired(world: World) -> World:
    await world.put(SERVICECIDRS, RANGE)
    return world


async def test_an_address_that_is_missing_is_made_and_told_of(repaired: World) -> None:
    await repaired.put(SERVICES, service())
    await repaired.put(SERVICES, service("headless", "None"))
    async with repaired.running(SERVICE_ADDRESS_REPAIR, ADDRESS_REPAIR):
        assert parents(repaired) == {"10.0.0.5": "a"}
        text = "Cluster IP [IPv4]: 10.0.0.5 is not allocated; repairing"
        assert await repaired.events() == [("Warning", "ClusterIPNotAllocated", text)]
        await repaired.client.delete(IPADDRESSES, "10.0.0.5")
        await repaired.settle()
        assert parents(repaired) == {"10.0.0.5": "a"}


async def test_an_address_in_no_range_is_told_of_and_left(repaired: World) -> None:
    async with repaired.running(SERVICE_ADDRESS_REPAIR, ADDRESS_REPAIR):
        await repaired.put(SERVICES, service(ip="10.9.0.5"))
        text = "Cluster IP [IPv4]: 10.9.0.5 is not within any configured Service CIDR; please recreate service"
        assert await repaired.events() == [("Warning", "ClusterIPOutOfRange", text)]
        assert parents(repaired) == {}


@pytest.mark.parametrize(
    "wrong",
    [
        {"spec": {"parentRef": {"group": "x.io", "resource": "gateways", "name": "g"}}},
        {"spec": {"parentRef": {"resource": "services", "namespace": "ns", "name": "gone"}}},
        {"spec": {"parentRef": {"resource": "services", "namespace": "ns", "name": "other"}}},
    ],
)
async def test_an_address_of_somebody_else_is_made_anew(repaired: World, wrong: Object) -> None:
    await repaired.put(SERVICES, service("other", "10.0.0.6"))
    await repaired.put(SERVICES, service())
    await repaired.put(IPADDRESSES, ip_address_of(service("other"), "10.0.0.6"))
    await repaired.put(IPADDRESSES, {**ip_address_of(service(), "10.0.0.5"), **wrong})
    async with repaired.running(SERVICE_ADDRESS_REPAIR):
        assert parents(repaired) == {"10.0.0.5": "a", "10.0.0.6": "other"}
        text = "the ClusterIP [IPv4]: 10.0.0.5 for Service ns/a has a wrong reference; repairing"
        assert await repaired.events() == [("Warning", "ClusterIPNotAllocated", text)]


async def test_labels_that_were_taken_off_come_back_without_a_word(repaired: World) -> None:
    await repaired.put(SERVICES, service())
    bare = ip_address_of(service(), "10.0.0.5")
    await repaired.put(IPADDRESSES, {**bare, "metadata": {"name": "10.0.0.5"}})
    async with repaired.running(SERVICE_ADDRESS_REPAIR):
        (found,) = repaired.client.of(IPADDRESSES)
        assert found["metadata"]["labels"] == bare["metadata"]["labels"]
        assert await repaired.events() == []


async def test_two_services_of_one_address_are_told_of(repaired: World) -> None:
    for name in ("a", "b"):
        await repaired.put(SERVICES, service(name))
    await repaired.put(IPADDRESSES, ip_address_of(service("a"), "10.0.0.5"))
    async with repaired.running(SERVICE_ADDRESS_REPAIR, ADDRESS_REPAIR):
        text = "Cluster IP [IPv4]:10.0.0.5 was assigned to multiple services; please recreate service"
        assert await repaired.events() == [("Warning", "ClusterIPAlreadyAllocated", text)]
        assert parents(repaired) == {"10.0.0.5": "a"}


async def test_a_leaked_address_goes_after_a_minute(repaired: World) -> None:
    async with repaired.running(SERVICE_ADDRESS_REPAIR, ADDRESS_REPAIR):
        await repaired.put(IPADDRESSES, ip_address_of(service(), "10.0.0.5"))
        await repaired.advance(55.0)
        assert parents(repaired) == {"10.0.0.5": "a"}
        await repaired.advance(10.0)
        assert parents(repaired) == {}
        text = "IPAddress: 10.0.0.5 for Service ns/a appears to have leaked: cleaning up"
        assert await repaired.events() == [("Warning", "IPAddressNotAllocated", text)]


async def test_an_address_that_its_service_has_not_goes(repaired: World) -> None:
    await repaired.put(SERVICES, service())
    await repaired.put(IPADDRESSES, ip_address_of(service(), "10.0.0.5"))
    await repaired.put(IPADDRESSES, ip_address_of(service(), "10.0.0.6"))
    async with repaired.running(SERVICE_ADDRESS_REPAIR, ADDRESS_REPAIR):
        assert parents(repaired) == {"10.0.0.5": "a"}
        text = "IPAddress: 10.0.0.6 for Service ns/a has a wrong reference; cleaning up"
        assert await repaired.events() == [("Warning", "IPAddressWrongReference", text)]


async def test_what_others_made_is_left_alone(repaired: World) -> None:
    parent = {"resource": "services", "namespace": "ns", "name": "gone"}
    await repaired.put(IPADDRESSES, {"metadata": {"name": "10.0.0.9"}, "spec": {"parentRef": parent}})
    async with repaired.running(SERVICE_ADDRESS_REPAIR, ADDRESS_REPAIR):
        await repaired.advance(120.0)
        assert parents(repaired) == {"10.0.0.9": "gone"}
