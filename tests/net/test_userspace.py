"""Where the userspace proxier listens, and which endpoint a client is led to."""

from __future__ import annotations

import asyncio
import random
import socket
from typing import Any

import pytest

from kone.net.names import Names
from kone.net.rule_config import RuleConfig
from kone.net.service_map import Endpoint, ServicePort, ServicePortName
from kone.net.userspace import Choice, Door, TcpRelay, Way, doors_of

CONFIG = RuleConfig(Names(), ["10.244.0.0/16"], ["10.96.0.0/16"], ["192.0.2.2"])
WEB = ServicePortName("default", "web", "http", "TCP")
A, B, C = (Endpoint(f"10.244.0.{n}", 8080) for n in (5, 6, 7))
OUTSIDE, POD, NODE = "198.51.100.9", "10.244.0.20", "192.0.2.2"


def web(*endpoints: Endpoint, **more: Any) -> ServicePort:
    return ServicePort("TCP", "10.96.0.20", 80, cluster_endpoints=endpoints, has_endpoints=bool(endpoints), **more)


def choice() -> Choice:
    return Choice(CONFIG, random.Random(1))


def test_doors_are_the_addresses_that_lead_somewhere() -> None:
    port = web(A, node_port=30080, external_ips=("203.0.113.5",), load_balancer_ips=("203.0.113.6",))
    assert {door: way.kind for door, way in doors_of(WEB, port).items()} == {
        Door("TCP", "10.96.0.20", 80): "internal",
        Door("TCP", "203.0.113.5", 80): "external",
        Door("TCP", "203.0.113.6", 80): "balancer",
        Door("TCP", "", 30080): "external",
    }
    assert not doors_of(WEB, web(node_port=30080)), "so that the kernel refuses"
    assert not doors_of(WEB, ServicePort("SCTP", "10.96.0.20", 80, cluster_endpoints=(A,)))


@pytest.mark.parametrize(
    ("client", "expected"),
    [(OUTSIDE, [B]), (POD, [A, B]), (NODE, [A, B]), ("127.0.0.1", [A, B])],
    ids=["outside: here only", "a pod", "the node", "loopback"],
)
def test_external_policy_local_binds_outsiders_only(client: str, expected: list[Endpoint]) -> None:
    way = Way(WEB, web(A, B, external_local=True, local_endpoints=(B,), node_port=30080), "external")
    assert list(choice().endpoints(way, client, "192.0.2.2")) == expected


def test_source_ranges_shut_the_balancer_only() -> None:
    port = web(A, source_ranges=("203.0.113.0/24",))
    assert choice().order(Way(WEB, port, "balancer"), OUTSIDE, NODE, 0) == []
    assert choice().order(Way(WEB, port, "balancer"), "203.0.113.9", NODE, 0) == [A]
    assert choice().order(Way(WEB, port, "external"), OUTSIDE, NODE, 0) == [A]


def test_a_client_sticks_by_every_way_in_for_its_time() -> None:
    sticking, port = choice(), web(A, B, C, affinity_s=60)
    inside, outside = Way(WEB, port, "internal"), Way(WEB, port, "external")
    sticking.went(inside, POD, C, now=0)
    assert {sticking.order(way, POD, NODE, now=59)[0] for way in (inside, outside) for _ in range(20)} == {C}
    assert {sticking.order(inside, POD, NODE, now=60)[0] for _ in range(50)} == {A, B, C}
    without = Way(WEB, web(A, B, affinity_s=60), "internal")
    sticking.went(inside, POD, C, now=100)
    assert set(sticking.order(without, POD, NODE, now=101)) == {A, B}, "the endpoint is gone"
    sticking.forget([WEB])
    assert {sticking.order(inside, POD, NODE, now=101)[0] for _ in range(50)} == {A, B, C}


def test_every_endpoint_has_the_same_chance() -> None:
    even = choice()
    first = [even.order(Way(WEB, web(A, B, C), "internal"), POD, NODE, 0)[0] for _ in range(300)]
    assert min(first.count(e) for e in (A, B, C)) > 70


async def test_a_lone_endpoint_that_does_not_answer_at_once_is_tried_again() -> None:
    loop = asyncio.get_running_loop()
    with socket.socket() as server, socket.socket() as door, socket.socket() as filler, socket.socket() as client:
        for listening, backlog in ((server, 0), (door, 1)):
            listening.bind(("127.0.0.1", 0))
            listening.listen(backlog)
        for one in (server, door, filler, client):
            one.setblocking(False)
        await loop.sock_connect(filler, server.getsockname())  # the queue is full: the kernel drops further SYNs
        relay = TcpRelay(door, Way(WEB, web(Endpoint(*server.getsockname())), "internal"), choice())
        await loop.sock_connect(client, door.getsockname())
        answer = loop.create_task(loop.sock_recv(client, 10))
        done, _ = await asyncio.wait([answer], timeout=0.1)
        assert not done
        (await loop.sock_accept(server))[0].close()
        async with asyncio.timeout(5):
            accepted = (await loop.sock_accept(server))[0]
            await loop.sock_sendall(accepted, b"a")
            assert await answer == b"a"
        accepted.close()
        relay.close()
        await relay.end()
