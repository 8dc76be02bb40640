"""Ranges of cluster IPs: ready, held while they are needed, and the one of the flags always there."""

from __future__ import annotations

import pytest

from kone.apimachinery.ip_addresses import ip_address_of
from kone.apimachinery.kinds import IPADDRESSES, SERVICECIDRS
from kone.apimachinery.objects import Object, find_condition
from kone.controllers.controller import Settings
from kone.controllers.service_cidrs import (
    DEFAULT_SERVICE_CIDR_CONTROLLER,
    FINALIZER,
    SERVICE_CIDR_CONTROLLER,
    is_needed,
)
from tests.controllers.world import World, conditions


def service_cidr(name: str, *cidrs: str) -> Object:
    spec = {"cidrs": [*cidrs]}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": name}, "spec": spec}


def address(ip: str) -> Object:
    return ip_address_of({"metadata": {"name": "s", "namespace": "ns"}}, ip)


MINE = service_cidr("mine", "10.0.0.0/24", "fd00::/112")


@pytest.mark.parametrize(
    ("others", "addresses", "needed"),
    [
        ([], [], False),
        ([], [address("10.0.0.1")], True),
        ([], [address("fd00::1")], True),
        ([], [address("10.0.1.1")], False),
        ([], [{"metadata": {"name": "10.0.0.1"}}], False),  # nobody's but the one's who made it
        ([service_cidr("wide", "10.0.0.0/16", "fd00::/64")], [address("10.0.0.1")], False),
        ([service_cidr("half", "10.0.0.0/25")], [address("10.0.0.1")], False),
        ([service_cidr("half", "10.0.0.0/25")], [address("10.0.0.200")], True),
        ([service_cidr("half", "10.0.0.0/25")], [address("10.0.0.127")], True),  # its broadcast address
    ],
)
def test_when_a_range_is_needed(others: list[Object], addresses: list[Object], needed: bool) -> None:
    assert is_needed(MINE, [MINE, *others], addresses) is needed


async def test_a_new_range_gets_its_finalizer_and_is_ready(world: World) -> None:
    async with world.running(SERVICE_CIDR_CONTROLLER):
        made = await world.put(SERVICECIDRS, service_cidr("mine", "10.0.0.0/24"))
        found = world.client.look(SERVICECIDRS, made)
        assert found["metadata"]["finalizers"] == [FINALIZER]
        ready = find_condition(found, "Ready")
        assert ready is not None
        assert (ready["status"], ready["message"]) == ("True", "Kubernetes Service CIDR is ready")


async def test_a_range_in_use_terminates_until_its_last_address_is_gone(world: World) -> None:
    async with world.running(SERVICE_CIDR_CONTROLLER):
        made = await world.put(SERVICECIDRS, service_cidr("mine", "10.0.0.0/24"))
        await world.put(IPADDRESSES, address("10.0.0.7"))
        await world.client.delete(SERVICECIDRS, "mine")
        await world.advance(60.0)
        assert conditions(world.client.look(SERVICECIDRS, made))["Ready"] == ("False", "Terminating")
        await world.client.delete(IPADDRESSES, "10.0.0.7")
        await world.settle()
        assert world.client.of(SERVICECIDRS) == []


async def test_an_unused_range_goes_after_ten_seconds(world: World) -> None:
    async with world.running(SERVICE_CIDR_CONTROLLER):
        await world.put(SERVICECIDRS, service_cidr("mine", "10.0.0.0/24"))
        await world.client.delete(SERVICECIDRS, "mine")
        await world.advance(8.0)
        assert len(world.client.of(SERVICECIDRS)) == 1
        await world.advance(3.0)
        assert world.client.of(SERVICECIDRS) == []


async def test_a_wider_range_frees_one_that_waits(world: World) -> None:
    async with world.running(SERVICE_CIDR_CONTROLLER):
        await world.put(SERVICECIDRS, service_cidr("mine", "10.0.0.0/24"))
        await world.put(IPADDRESSES, address("10.0.0.7"))
        await world.client.delete(SERVICECIDRS, "mine")
        await world.advance(60.0)
        await world.put(SERVICECIDRS, service_cidr("wide", "10.0.0.0/16"))
        assert [one["metadata"]["name"] for one in world.client.of(SERVICECIDRS)] == ["wide"]


async def test_the_range_of_the_flags_is_made_again(world: World) -> None:
    settings = Settings(service_cidrs=("10.0.0.0/24", "fd00::/112"))
    async with world.running(DEFAULT_SERVICE_CIDR_CONTROLLER, settings=settings):
        for _ in range(2):
            (found,) = world.client.of(SERVICECIDRS)
            assert found["spec"]["cidrs"] == ["10.0.0.0/24", "fd00::/112"]
            assert conditions(found)["Ready"] == ("True", "")
            await world.client.delete(SERVICECIDRS, "kubernetes")
            await world.settle()


async def test_flags_that_say_something_else_are_told_of(world: World) -> None:
    await world.put(SERVICECIDRS, service_cidr("kubernetes", "10.1.0.0/24"))
    async with world.running(DEFAULT_SERVICE_CIDR_CONTROLLER, settings=Settings(service_cidrs=("10.0.0.0/24",))):
        assert await world.events() == [
            (
                "Warning",
                "KubernetesDefaultServiceCIDRInconsistent",
                "The default ServiceCIDR [10.1.0.0/24] does not match the controller flag configurations [10.0.0.0/24]",
            )
        ]
        assert world.client.of(SERVICECIDRS)[0]["spec"]["cidrs"] == ["10.1.0.0/24"]
