"""DNS as pods reach it: at the cluster DNS address, whatever the host's own packet filter and name server do."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import dns.message
import pytest

from kone.apimachinery.kinds import NAMESPACES, SERVICES
from kone.net.bridge import BridgeNetwork, NetworkConfig
from kone.net.dns.server import DnsServer
from kone.net.dns.service import dns_service, ensure_dns_service, withdraw_dns_service
from kone.net.firewall import Firewall
from kone.net.names import Names
from kone.net.service_map import is_proxied
from tests.fakes import FakeClient
from tests.net.objects import namespace, service
from tests.net.world import World, run

CLUSTER_DNS = "10.96.0.10"
CONFIG = NetworkConfig(["10.244.0.0/24"], ["10.244.0.0/16"], ["10.96.0.0/16"], [CLUSTER_DNS])
NAME = "web.default.svc.cluster.local"


class Node:
    def __init__(self, world: World, data_dir: Path) -> None:
        self.world = world
        self.client = FakeClient()
        self.firewall = Firewall(Names())
        self.network = BridgeNetwork(Names(), CONFIG, data_dir, self.firewall)
        self.dns = DnsServer(self.client, "cluster.local", [CLUSTER_DNS], firewall=self.firewall)
        self.pod = ""

    async def start(self) -> None:
        self.client.put(NAMESPACES, namespace("default"))
        self.client.put(SERVICES, service("web"))
        await self.firewall.start()
        await self.network.start()
        self.pod = self.world.namespace()
        await self.network.attach(pod_uid="a", pod_name="a", namespace="", netns=self.pod, host_ports=())

    async def stop(self) -> None:
        await self.dns.stop()
        await self.network.stop()
        await self.firewall.stop()

    async def ask(self, path: str, *, tcp: bool = False) -> list[str]:
        query = dns.message.make_query(NAME, "A").to_wire()
        loop = asyncio.get_running_loop()
        kind = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
        with self.world.inside(path):
            client = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK)
        async with asyncio.timeout(2):
            with client:
                await loop.sock_connect(client, (CLUSTER_DNS, 53))
                await loop.sock_sendall(client, len(query).to_bytes(2, "big") + query if tcp else query)
                wire = await loop.sock_recv(client, 4096)
        message = dns.message.from_wire(wire[2:] if tcp else wire)
        return [str(item) for rrset in message.answer for item in rrset]

    async def answers(self) -> bool:
        return all(
            [await self.ask(path, tcp=tcp) == ["10.96.0.20"] for path in (self.pod, "") for tcp in (False, True)]
        )


@pytest.fixture
async def node(world: World, tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(world, tmp_path)
    await node.start()
    yield node
    await node.stop()


@pytest.mark.ring3
async def test_pods_and_the_host_reach_it_through_a_closed_packet_filter(node: Node) -> None:
    run("iptables", "-P", "INPUT", "DROP")
    run("iptables", "-P", "FORWARD", "DROP")
    run("iptables", "-A", "INPUT", "-i", "lo", "-j", "ACCEPT")
    await node.dns.start()
    assert await node.answers()


@pytest.mark.ring3
async def test_it_answers_without_any_rule(node: Node) -> None:
    await node.firewall.stop()
    await node.dns.start()
    run("iptables", "-F")
    run("iptables", "-t", "nat", "-F")
    assert await node.answers()


@pytest.mark.ring3
async def test_a_name_server_of_the_hosts_on_every_address_is_stepped_around(node: Node) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.create_server(("0.0.0.0", 53)),
    ):
        udp.bind(("0.0.0.0", 53))
        await node.dns.start()
        assert node.dns.ports != [53]
        assert await node.answers()
        await node.dns.stop()
    again = DnsServer(node.client, "cluster.local", [CLUSTER_DNS], firewall=node.firewall)
    await again.start()
    assert again.ports == [53]
    assert "KONE-DNS" not in run("iptables-save")
    assert await node.answers()
    await again.stop()


async def test_the_service_is_made_once_and_left_to_the_node() -> None:
    client = FakeClient()
    await ensure_dns_service(client, CLUSTER_DNS)
    await ensure_dns_service(client, CLUSTER_DNS)
    (made,) = client.of(SERVICES)
    assert made["spec"]["clusterIP"] == CLUSTER_DNS
    assert not is_proxied(dns_service(CLUSTER_DNS))


async def test_a_node_without_dns_withdraws_its_own_service_only() -> None:
    client = FakeClient()
    await withdraw_dns_service(client)
    await ensure_dns_service(client, CLUSTER_DNS)
    await withdraw_dns_service(client)
    assert not client.of(SERVICES)
    client.put(SERVICES, service("kube-dns", "kube-system"))
    await withdraw_dns_service(client)
    assert len(client.of(SERVICES)) == 1
