"""From Services and EndpointSlices to what a proxier shall serve: the rules of traffic policies as tables."""

from __future__ import annotations

from typing import Any

import pytest

from kone.apimachinery.objects import Object
from kone.net.service_map import Endpoint, Place, ServicePort, ServicePortName, service_map
from tests.net.objects import endpoint, endpoint_slice, service

HERE = Place("n1", zone="a")


def ports(services: list[Object], slices: list[Object] | None = None, place: Place = HERE) -> dict[str, ServicePort]:
    return {str(name): port for name, port in service_map(services, slices or [], place).items()}


def one(spec: dict[str, Any], *endpoints: Object, **slice_fields: Any) -> ServicePort:
    (port,) = ports([service("web", **spec)], [endpoint_slice("web", *endpoints, **slice_fields)]).values()
    return port


def ips(endpoints: tuple[Endpoint, ...]) -> list[str]:
    return [e.ip for e in endpoints]


def test_a_cluster_ip_with_its_ready_endpoints() -> None:
    port = one({}, endpoint("10.244.0.6", node="n1"), endpoint("10.244.0.5", node="n2"))
    assert port == ServicePort(
        protocol="TCP",
        cluster_ip="10.96.0.20",
        port=80,
        cluster_endpoints=(Endpoint("10.244.0.5", 8080, local=False), Endpoint("10.244.0.6", 8080)),
        has_endpoints=True,
    )


@pytest.mark.parametrize(
    "other",
    [
        service("web", clusterIP="None"),
        service("web", clusterIP=""),
        service("web", type="ExternalName", externalName="example.com"),
        service("web", labels={"service.kubernetes.io/service-proxy-name": "mine"}),
    ],
    ids=["headless", "not yet allocated", "external name", "somebody else's"],
)
def test_what_is_not_proxied(other: Object) -> None:
    assert not ports([other], [endpoint_slice("web", endpoint("10.244.0.5"))])


def test_each_port_has_the_endpoints_of_its_name_and_protocol() -> None:
    found = ports(
        [service("dns", ports=[("dns", 53, "UDP"), ("dns-tcp", 53), ("metrics", 9153)])],
        [endpoint_slice("dns", endpoint("10.244.0.5"), ports=[("dns", 5353, "UDP"), ("dns-tcp", 5354)])],
    )
    assert {name: [e.port for e in port.cluster_endpoints] for name, port in found.items()} == {
        "default/dns:dns": [5353],
        "default/dns:dns-tcp": [5354],
        "default/dns:metrics": [],
    }
    assert found["default/dns:dns"].protocol == "UDP"
    assert not found["default/dns:metrics"].has_endpoints


def test_an_unnamed_port_is_served_by_an_unnamed_port() -> None:
    found = ports(
        [service("web", ports=[("", 80)])], [endpoint_slice("web", endpoint("10.244.0.5"), ports=[("", 8080)])]
    )
    assert ips(found["default/web:TCP"].cluster_endpoints) == ["10.244.0.5"]


def test_a_named_target_port_may_be_another_number_in_each_slice() -> None:
    found = ports(
        [service("web")],
        [
            endpoint_slice("web", endpoint("10.244.0.5"), ports=[("http", 8080)], name="web-1"),
            endpoint_slice("web", endpoint("10.244.0.6"), ports=[("http", 9090)], name="web-2"),
        ],
    )
    assert found["default/web:http"].cluster_endpoints == (Endpoint("10.244.0.5", 8080), Endpoint("10.244.0.6", 9090))


READY, NOT_READY = {"ready": True}, {"ready": False}
DRAINING = {"ready": False, "serving": True, "terminating": True}
STOPPED = {"ready": False, "serving": False, "terminating": True}


@pytest.mark.parametrize(
    ("conditions", "used"),
    [
        ([READY, NOT_READY, DRAINING], [0]),
        ([NOT_READY, DRAINING, STOPPED], [1]),
        ([NOT_READY, STOPPED], []),
        ([{}, READY], [0, 1]),
    ],
    ids=["ready ones only", "else those that drain", "none", "unsaid is ready"],
)
def test_which_conditions_count(conditions: list[dict[str, bool]], used: list[int]) -> None:
    entries = [endpoint(f"10.244.0.{n}") | {"conditions": c} for n, c in enumerate(conditions, 2)]
    port = one({}, *entries)
    assert ips(port.cluster_endpoints) == [f"10.244.0.{n + 2}" for n in used]
    assert port.has_endpoints == bool(used)


def test_of_two_with_one_address_the_living_one_counts() -> None:
    dying = endpoint("10.244.0.5", **DRAINING)
    alive = endpoint("10.244.0.5")
    for order in ((dying, alive), (alive, dying)):
        slices = [endpoint_slice("web", e, name=f"web-{n}") for n, e in enumerate(order)]
        (port,) = ports([service("web")], slices).values()
        assert ips(port.cluster_endpoints) == ["10.244.0.5"]


LOCAL, REMOTE = ("10.244.0.5", "n1"), ("10.244.1.5", "n2")


@pytest.mark.parametrize(
    ("spec", "here", "internal", "external"),
    [
        ({}, True, ["l", "r"], ["l", "r"]),
        ({"internalTrafficPolicy": "Local"}, True, ["l"], []),
        ({"internalTrafficPolicy": "Local"}, False, [], []),
        ({"type": "NodePort", "externalTrafficPolicy": "Local"}, True, ["l", "r"], ["l"]),
        ({"type": "NodePort", "externalTrafficPolicy": "Local"}, False, ["r"], []),
        (
            {"type": "NodePort", "externalTrafficPolicy": "Cluster", "internalTrafficPolicy": "Local"},
            True,
            ["l"],
            ["l", "r"],
        ),
        ({"externalTrafficPolicy": "Local"}, True, ["l", "r"], ["l", "r"]),
        ({"externalTrafficPolicy": "Local", "externalIPs": ["192.0.2.9"]}, True, ["l", "r"], ["l"]),
    ],
)
def test_traffic_policies(spec: dict[str, Any], here: bool, internal: list[str], external: list[str]) -> None:
    spec = spec | {"ports": [("http", 80, "TCP", 30080)] if spec.get("type") == "NodePort" else [("http", 80)]}
    entries = [endpoint(ip, node=node) for ip, node in ([LOCAL] if here else []) + [REMOTE]]
    port = one(spec, *entries)
    names = {"10.244.0.5": "l", "10.244.1.5": "r"}
    assert [names[ip] for ip in ips(port.internal_endpoints)] == internal
    assert [names[ip] for ip in ips(port.external_endpoints)] == external
    assert port.has_endpoints


def test_policy_local_drains_on_its_own_node_while_others_are_ready() -> None:
    """KEP-1669: the fall-back to endpoints that terminate is decided for each node by itself."""
    spec = {"type": "NodePort", "externalTrafficPolicy": "Local", "ports": [("http", 80, "TCP", 30080)]}
    port = one(spec, endpoint("10.244.0.5", node="n1", **DRAINING), endpoint("10.244.1.5", node="n2"))
    assert ips(port.local_endpoints) == ["10.244.0.5"]
    assert ips(port.cluster_endpoints) == ["10.244.1.5"]


def hinted(ip: str, *, zones: str = "", nodes: str = "") -> Object:
    hints = {"forZones": [{"name": z} for z in zones.split()], "forNodes": [{"name": n} for n in nodes.split()]}
    return endpoint(ip, hints={k: v for k, v in hints.items() if v})


@pytest.mark.parametrize(
    ("entries", "used"),
    [
        ([hinted("10.0.0.1", zones="a"), hinted("10.0.0.2", zones="b")], ["10.0.0.1"]),
        ([hinted("10.0.0.1", zones="a"), endpoint("10.0.0.2")], ["10.0.0.1", "10.0.0.2"]),
        ([hinted("10.0.0.1", zones="b"), hinted("10.0.0.2", zones="c")], ["10.0.0.1", "10.0.0.2"]),
        ([hinted("10.0.0.1", zones="a", nodes="n1"), hinted("10.0.0.2", zones="a", nodes="n2")], ["10.0.0.1"]),
        ([hinted("10.0.0.1", zones="b", nodes="n3"), hinted("10.0.0.2", zones="a", nodes="n2")], ["10.0.0.2"]),
    ],
    ids=["this zone", "one without a hint", "none for this zone", "this node", "else this zone"],
)
def test_topology_hints(entries: list[Object], used: list[str]) -> None:
    assert ips(one({}, *entries).cluster_endpoints) == used


def test_addresses_from_outside() -> None:
    port = one(
        {
            "type": "LoadBalancer",
            "externalIPs": ["192.0.2.9", "fd00::9"],
            "loadBalancerSourceRanges": [" 198.51.100.7/24", "fd00::/8"],
            "ports": [("http", 80, "TCP", 30080)],
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.10"}, {"ip": "192.0.2.11", "ipMode": "Proxy"}]}},
        },
        endpoint("10.244.0.5"),
    )
    assert (port.external_ips, port.load_balancer_ips) == (("192.0.2.9",), ("192.0.2.10",))
    assert port.source_ranges == ("198.51.100.0/24",)
    assert port.node_port == 30080


def test_a_source_range_of_everybody_is_none() -> None:
    spec = {"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.0/8", "0.0.0.0/0"]}
    assert one(spec).source_ranges == ()


@pytest.mark.parametrize(
    ("spec", "seconds"),
    [
        ({}, 0),
        ({"sessionAffinity": "ClientIP"}, 10800),
        ({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}}, 60),
    ],
)
def test_session_affinity(spec: dict[str, Any], seconds: int) -> None:
    assert one(spec).affinity_s == seconds


def test_each_family_is_served_by_itself() -> None:
    services = [service("web", clusterIPs=["10.96.0.20", "fd00::20"])]
    slices = [
        endpoint_slice("web", endpoint("10.244.0.5"), name="web-4"),
        endpoint_slice("web", endpoint("fd00:1::5"), name="web-6", family="IPv6"),
    ]
    six = ports(services, slices, Place("n1", family="IPv6"))["default/web:http"]
    assert (six.cluster_ip, ips(six.cluster_endpoints)) == ("fd00::20", ["fd00:1::5"])
    assert not ports([service("web")], slices, Place("n1", family="IPv6"))


def test_slices_of_headless_services_and_of_nobody_are_passed_over() -> None:
    slices = [
        endpoint_slice("web", endpoint("10.244.0.5"), labels={"service.kubernetes.io/headless": ""}),
        endpoint_slice("", endpoint("10.244.0.6"), name="x"),
    ]
    (port,) = ports([service("web")], slices).values()
    assert not port.has_endpoints


def test_the_name_of_a_port_reads_as_users_know_it() -> None:
    assert str(ServicePortName("shop", "web", "http", "TCP")) == "shop/web:http"
