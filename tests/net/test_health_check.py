"""The health check node port: a load balancer learns by HTTP whether this node has endpoints of its own."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from kone.apimachinery.objects import Key
from kone.net.health_check import Check, HealthChecks, body
from kone.net.host_addresses import listening_addresses
from kone.net.service_map import Place, service_ports
from tests.net.objects import endpoint, endpoint_slice, service

WEB = Key("default", "web")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@pytest.fixture
async def checks() -> AsyncIterator[HealthChecks]:
    checks = HealthChecks("n1", lambda: True)
    await checks.move(["127.0.0.1"])
    yield checks
    await checks.stop()


async def ask(port: int, address: str = "127.0.0.1") -> str:
    reader, writer = await asyncio.open_connection(address, port)
    writer.write(b"GET / HTTP/1.1\r\nHost: n1\r\n\r\n")
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    return answer


async def test_endpoints_here_are_200_and_none_503(checks: HealthChecks) -> None:
    port = free_port()
    await checks.update({WEB: Check(port, 2)}, {})
    answer = await ask(port)
    assert answer.startswith("HTTP/1.1 200 OK\r\n")
    assert "X-Load-Balancing-Endpoint-Weight: 2\r\n" in answer
    assert answer.endswith(body(WEB, 2, True))
    await checks.update({WEB: Check(port, 0)}, {})
    assert (await ask(port)).startswith("HTTP/1.1 503 Service Unavailable\r\n")
    await checks.update({WEB: None}, {})
    with pytest.raises(ConnectionRefusedError):
        await ask(port)


async def test_a_port_that_is_taken_is_tried_again(checks: HealthChecks) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        await checks.update({WEB: Check(port, 1)}, {})
        assert checks.failed == [WEB]
    await checks.update({}, {})
    assert (await ask(port)).startswith("HTTP/1.1 200")


async def test_it_listens_at_the_addresses_of_node_ports_and_follows_them(checks: HealthChecks) -> None:
    port = free_port()
    await checks.move(["127.0.0.2", "127.0.0.3"])
    await checks.update({WEB: Check(port, 1)}, {})
    for address in ("127.0.0.2", "127.0.0.3"):
        assert (await ask(port, address)).startswith("HTTP/1.1 200")
    with pytest.raises(ConnectionRefusedError):
        await ask(port)
    await checks.move([])
    await checks.update({}, {})
    assert checks.failed == [], "no address of the host's is in the ranges by now: no failure"
    await checks.move(["127.0.0.3"])
    await checks.update({}, {})
    assert (await ask(port, "127.0.0.3")).startswith("HTTP/1.1 200")
    with pytest.raises(ConnectionRefusedError):
        await ask(port, "127.0.0.2")


@pytest.mark.parametrize(
    ("cidrs", "families", "addresses"),
    [
        (["192.0.2.0/24"], {4}, ["192.0.2.2", "192.0.2.3"]),
        (["192.0.2.0/24", "127.0.0.0/8"], {4}, ["127.0.0.1", "192.0.2.2", "192.0.2.3"]),
        (["192.0.2.2/32"], {4, 6}, ["192.0.2.2", "::"]),
        (["192.0.2.2/32", "0.0.0.0/0"], {4}, ["0.0.0.0"]),
        (["2001:db8::/64"], {4, 6}, ["0.0.0.0", "2001:db8::2"]),
        (["198.51.100.0/24"], {4}, []),
    ],
    ids=["a range", "loopback, where named", "another family", "all", "IPv6", "none of the host's"],
)
def test_where_it_listens(cidrs: list[str], families: set[int], addresses: list[str]) -> None:
    host = ["192.0.2.3", "192.0.2.2", "127.0.0.1", "::1", "2001:db8::2", "fe80::1"]
    assert listening_addresses(cidrs, families, host) == addresses


def test_the_body_is_upstreams() -> None:
    assert body(WEB, 1, True) == (
        '{\n\t"service": {\n\t\t"namespace": "default",\n\t\t"name": "web"\n\t},'
        '\n\t"localEndpoints": 1,\n\t"serviceProxyHealthy": true\n}'
    )


def test_ready_endpoints_of_this_node_count() -> None:
    web = service("web", type="LoadBalancer", externalTrafficPolicy="Local", healthCheckNodePort=31000)
    draining = {"ready": False, "serving": True, "terminating": True}
    found = endpoint_slice(
        "web",
        endpoint("10.244.0.5", node="n1"),
        endpoint("10.244.0.6", node="n1", **draining),
        endpoint("10.244.1.5", node="n2"),
    )
    (port,) = service_ports(web, [found], Place("n1")).values()
    assert (port.health_check_node_port, port.local_ready) == (31000, ("10.244.0.5",))
