"""The health check node port: a load balancer learns by HTTP whether this node has endpoints of its own."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from kone.apimachinery.objects import Key
from kone.net.health_check import Check, HealthChecks, body
from kone.net.service_map import Place, service_ports
from tests.net.objects import endpoint, endpoint_slice, service

WEB = Key("default", "web")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@pytest.fixture
async def checks() -> AsyncIterator[HealthChecks]:
    checks = HealthChecks("n1", lambda: True, address="127.0.0.1")
    yield checks
    await checks.stop()


async def ask(port: int) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
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
