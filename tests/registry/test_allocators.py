"""Cluster IPs and node ports: what two services claim at once, and what a write that failed gives back."""

from __future__ import annotations

import random

import pytest

from kone.apimachinery.errors import StatusError
from kone.apimachinery.objects import Object, deep_copy
from kone.registry.allocators import AllocationError, Allocators
from kone.registry.core.service import SERVICES


def _allocators(cidr: str = "10.0.0.0/28", ports: tuple[int, int] = (30000, 30003)) -> Allocators:
    return Allocators((cidr,), ports, random.Random(1))


def _service(**spec: object) -> Object:
    body: Object = {"metadata": {"name": "s", "namespace": "default"}, "spec": {"ports": [{"port": 80}], **spec}}
    SERVICES.strategy.default(body)
    return body


def _begin(body: Object, allocators: Allocators, old: Object | None = None) -> Object:
    """The service as it is when it has been given what it claims, and stored."""
    SERVICES.strategy.begin(body, old, allocators)
    allocators.see_service(body, old)
    return body


def test_a_range_is_handed_out_whole_and_then_is_full() -> None:
    allocators = _allocators("10.0.0.0/29")
    given = {allocators.allocate_ip("IPv4") for _ in range(6)}
    assert given == {f"10.0.0.{n}" for n in range(1, 7)}  # neither the network's address nor its broadcast
    with pytest.raises(AllocationError, match="range is full"):
        allocators.allocate_ip("IPv4")
    allocators.release_ip("10.0.0.3")
    assert allocators.allocate_ip("IPv4") == "10.0.0.3"


def test_low_addresses_are_left_for_those_who_choose() -> None:
    allocators = _allocators("10.0.0.0/24")
    assert all(int(allocators.allocate_ip("IPv4").rsplit(".")[-1]) > 16 for _ in range(50))


@pytest.mark.parametrize(
    ("address", "why"),
    [("10.0.0.5", "provided IP is already allocated"), ("10.1.0.1", "does not match the current range")],
)
def test_an_address_that_cannot_be_had(address: str, why: str) -> None:
    allocators = _allocators()
    allocators.hold_ip("IPv4", "10.0.0.5")
    with pytest.raises(AllocationError, match=why):
        allocators.hold_ip("IPv4", address)


def test_what_services_claim_is_known_from_them() -> None:
    allocators, service = _allocators(), _service(clusterIP="10.0.0.5", clusterIPs=["10.0.0.5"])
    service["spec"]["ports"][0]["nodePort"] = 30001
    allocators.see_service(service, None)
    with pytest.raises(AllocationError):
        allocators.hold_ip("IPv4", "10.0.0.5")
    with pytest.raises(AllocationError):
        allocators.hold_port(30001)
    allocators.see_service(None, service)
    allocators.hold_ip("IPv4", "10.0.0.5")
    allocators.hold_port(30001)


def test_a_service_is_given_an_address_and_its_family() -> None:
    spec = _begin(_service(), _allocators())["spec"]
    assert spec["clusterIP"] == spec["clusterIPs"][0]
    assert spec["clusterIP"].startswith("10.0.0.")
    assert (spec["ipFamilies"], spec["ipFamilyPolicy"]) == (["IPv4"], "SingleStack")


def test_a_headless_service_and_a_name_are_given_none() -> None:
    headless = _begin(_service(clusterIP="None", selector={"a": "b"}), _allocators())["spec"]
    assert (headless["clusterIPs"], headless["ipFamilies"]) == (["None"], ["IPv4"])
    name = _begin(_service(type="ExternalName", externalName="example.org"), _allocators())["spec"]
    assert "clusterIP" not in name
    assert "ipFamilies" not in name


def test_node_ports_are_given_and_are_the_same_for_two_protocols_of_a_port() -> None:
    dns = [{"name": "a", "port": 53, "protocol": "TCP"}, {"name": "b", "port": 53, "protocol": "UDP"}]
    ports = _begin(_service(type="NodePort", ports=dns), _allocators())["spec"]["ports"]
    assert ports[0]["nodePort"] == ports[1]["nodePort"]
    assert 30000 <= ports[0]["nodePort"] <= 30003


def test_a_taken_address_is_refused_in_upstreams_words() -> None:
    allocators = _allocators()
    _begin(_service(clusterIP="10.0.0.5"), allocators)
    with pytest.raises(StatusError) as refused:
        _begin(_service(clusterIP="10.0.0.5"), allocators)
    assert refused.value.code == 422
    assert refused.value.message == (
        'Service "s" is invalid: spec.clusterIPs: Invalid value: ["10.0.0.5"]: '
        "failed to allocate IP 10.0.0.5: provided IP is already allocated"
    )


def test_a_failed_write_gives_back_all_that_it_held() -> None:
    allocators = _allocators()
    body = _service(type="NodePort", clusterIP="10.0.0.5", ports=[{"port": 80, "nodePort": 30001}])
    undo = SERVICES.strategy.begin(deep_copy(body), None, allocators)
    assert undo is not None
    undo()
    _begin(body, allocators)


def test_an_allocation_that_fails_half_way_holds_nothing() -> None:
    allocators = _allocators()
    with pytest.raises(StatusError):
        _begin(_service(type="NodePort", clusterIP="10.0.0.5", ports=[{"port": 80, "nodePort": 4}]), allocators)
    _begin(_service(clusterIP="10.0.0.5"), allocators)


def test_an_update_that_leaves_out_what_was_given_keeps_it() -> None:
    allocators = _allocators()
    old = _begin(_service(type="NodePort"), allocators)
    new = _begin(_service(type="NodePort"), allocators, old)
    assert new["spec"]["clusterIPs"] == old["spec"]["clusterIPs"]
    assert new["spec"]["ports"] == old["spec"]["ports"]


def _networks(name: str, *cidrs: str, ready: str = "True", **meta: object) -> Object:
    conditions = [{"type": "Ready", "status": ready}] if ready else []
    return {"metadata": {"name": name, **meta}, "spec": {"cidrs": [*cidrs]}, "status": {"conditions": conditions}}


def test_addresses_come_from_every_range_that_is_ready() -> None:
    allocators = _allocators("10.0.0.0/29")
    more = _networks("more", "10.0.1.0/29", ready="")
    allocators.see_networks(more, None)
    given = {allocators.allocate_ip("IPv4") for _ in range(12)}
    assert {address.rsplit(".", 1)[0] for address in given} == {"10.0.0", "10.0.1"}
    with pytest.raises(AllocationError, match="range is full"):
        allocators.allocate_ip("IPv4")


@pytest.mark.parametrize(
    "networks",
    [_networks("more", "10.0.1.0/29", ready="False"), _networks("more", "10.0.1.0/29", deletionTimestamp="2026")],
)
def test_a_range_that_is_not_ready_gives_nothing(networks: Object) -> None:
    allocators = _allocators()
    allocators.see_networks(networks, None)
    with pytest.raises(AllocationError, match="the provided network does not match the current range"):
        allocators.hold_ip("IPv4", "10.0.1.1")


def test_a_range_that_is_gone_gives_nothing_and_what_it_gave_stays_taken() -> None:
    allocators, more = _allocators("10.0.0.0/24"), _networks("more", "10.0.0.0/28")
    allocators.see_networks(more, None)
    service = _begin(_service(clusterIP="10.0.0.5"), allocators)
    allocators.see_networks(None, more)
    with pytest.raises(AllocationError, match="already allocated"):
        allocators.hold_ip("IPv4", "10.0.0.5")
    allocators.see_service(None, service)
    allocators.hold_ip("IPv4", "10.0.0.5")


def test_whoever_made_an_ip_address_has_it() -> None:
    allocators, address = _allocators(), {"metadata": {"name": "10.0.0.5"}}
    allocators.see_address(address, None)
    with pytest.raises(AllocationError, match="already allocated"):
        allocators.hold_ip("IPv4", "10.0.0.5")
    allocators.see_address(None, address)
    allocators.hold_ip("IPv4", "10.0.0.5")


def test_addresses_of_both_families() -> None:
    allocators = Allocators(("10.0.0.0/28", "fd00::/112"), rng=random.Random(1))
    spec = _begin(_service(ipFamilyPolicy="PreferDualStack"), allocators)["spec"]
    assert spec["ipFamilies"] == ["IPv4", "IPv6"]
    assert [":" in ip for ip in spec["clusterIPs"]] == [False, True]
