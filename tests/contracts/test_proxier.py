"""The contract of a Proxier (net/proxier.py), with real packets in namespaces of their own, for every Proxier."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from kone.net.bridge import BridgeNetwork, NetworkConfig, remove_links
from kone.net.firewall import Backend, Firewall
from kone.net.iptables import IptablesProxier
from kone.net.iptables_rules import RuleConfig
from kone.net.names import Names
from kone.net.proxier import Proxier
from kone.net.service_map import Endpoint, ServicePort, ServicePortName
from tests.net.world import HOST_IP, OUTSIDE_IP, World, kernel_state, run

pytestmark = pytest.mark.ring3

NAMES = Names()
VIP = "10.96.0.20"
WEB = ServicePortName("default", "web", "http", "TCP")
DNS = ServicePortName("default", "dns", "dns", "UDP")
NETWORK = NetworkConfig(["10.244.0.0/24"], ["10.244.0.0/16"], ["10.96.0.0/16"], ["10.96.0.10"])
RULES = RuleConfig(NAMES, ["10.244.0.0/16"], ["10.96.0.0/16"], [HOST_IP], ["10.244.0.0/24"])


class Stage:
    """A host with a proxier, and pods that serve; `client` is a pod that does not."""

    def __init__(self, world: World, data_dir: Path, backend: Backend) -> None:
        self.world = world
        self.backend = backend
        self.firewall = Firewall(NAMES, backend=backend)
        self.network = BridgeNetwork(NAMES, NETWORK, data_dir, self.firewall)
        self.proxier: Proxier = IptablesProxier(self.firewall, RULES)
        self.client = ""
        self.client_ip = ""
        self.pods: dict[str, str] = {}
        self.servers = AsyncExitStack()

    async def start(self) -> None:
        await self.firewall.start()
        await self.network.start()
        await self.proxier.start()
        self.client, self.client_ip = await self.pod("client")

    async def stop(self) -> None:
        await self.servers.aclose()
        await self.proxier.stop()
        await self.network.stop()
        await self.firewall.stop()

    async def pod(self, name: str) -> tuple[str, str]:
        path = self.world.namespace()
        (ip,) = await self.network.attach(pod_uid=name, pod_name=name, namespace="", netns=path, host_ports=())
        self.pods[name] = path
        return path, ip

    async def backend_pod(self, name: str, port: int = 8080) -> Endpoint:
        """A pod that answers with its name, by TCP and UDP."""
        path, ip = await self.pod(name)
        await self.servers.enter_async_context(await self.world.serve(path, port, name))
        transport = await self.world.serve_udp(path, port, name)
        self.servers.callback(transport.close)
        return Endpoint(ip, port)

    async def ask(self, address: str, port: int, *, path: str | None = None, timeout_s: float = 2) -> str:
        """Who answers a new connection, from the client pod unless another `path` is given."""
        asked = self.client if path is None else path
        return (await self.world.ask(asked, address, port, timeout_s=timeout_s))[0]

    async def peer(self, address: str, port: int, *, path: str | None = None) -> str:
        """As whom the server sees us."""
        return (await self.world.ask(self.client if path is None else path, address, port, timeout_s=2))[1]


@pytest.fixture
def world() -> Iterator[World]:
    with World.entered() as world:
        yield world


@pytest.fixture(params=["nft", "legacy"])
async def stage(request: pytest.FixtureRequest, world: World, tmp_path: Path) -> AsyncIterator[Stage]:
    stage = Stage(world, tmp_path, request.param)
    await stage.start()
    try:
        yield stage
    finally:
        await stage.stop()


def web(*endpoints: Endpoint, **more: object) -> ServicePort:
    fields: dict[str, object] = {"cluster_endpoints": endpoints, "has_endpoints": bool(endpoints)} | more
    return ServicePort(protocol="TCP", cluster_ip=VIP, port=80, **fields)  # type: ignore[arg-type]


async def refused(attempt: Awaitable[object]) -> bool:
    """Whether the connection is refused, rather than left without an answer."""
    try:
        await attempt
    except ConnectionRefusedError:
        return True
    except TimeoutError:
        return False
    raise AssertionError("it was answered")


async def eventually(check: Callable[[], Awaitable[bool]], within_s: float) -> float:
    began = time.monotonic()
    while not await check():
        assert time.monotonic() < began + within_s, f"not so within {within_s} s"
        await asyncio.sleep(0.05)
    return time.monotonic() - began


async def test_a_cluster_ip_leads_to_every_endpoint_alike(stage: Stage) -> None:
    a, b, c = [await stage.backend_pod(name) for name in "abc"]
    await stage.proxier.sync({WEB: web(a, b, c)})
    answers = Counter([await stage.ask(VIP, 80) for _ in range(90)])
    assert set(answers) == {"a", "b", "c"}
    assert min(answers.values()) > 12, "30 each in the mean"


async def test_the_client_pod_keeps_its_address_and_the_host_is_served_too(stage: Stage) -> None:
    a = await stage.backend_pod("a")
    await stage.proxier.sync({WEB: web(a)})
    assert await stage.peer(VIP, 80) == stage.client_ip
    assert await stage.ask(VIP, 80, path="") == "a"


async def test_a_pod_reaches_itself_through_its_service(stage: Stage) -> None:
    a = await stage.backend_pod("a")
    await stage.proxier.sync({WEB: web(a)})
    assert await stage.ask(VIP, 80, path=stage.pods["a"]) == "a"


async def test_it_does_not_depend_on_br_netfilter(stage: Stage) -> None:
    Path("/proc/sys/net/bridge/bridge-nf-call-iptables").write_text("0")
    a = await stage.backend_pod("a")
    await stage.proxier.sync({WEB: web(a)})
    assert await stage.peer(VIP, 80) == stage.client_ip
    assert await stage.ask(VIP, 80, path=stage.pods["a"]) == "a"


async def test_the_host_without_a_default_route_reaches_services(stage: Stage) -> None:
    a = await stage.backend_pod("a")
    await stage.proxier.sync({WEB: web(a)})
    run("ip", "route", "del", "default")
    assert await stage.ask(VIP, 80, path="") == "a"


async def test_udp_is_served(stage: Stage) -> None:
    a = await stage.backend_pod("a")
    await stage.proxier.sync({DNS: ServicePort("UDP", VIP, 53, cluster_endpoints=(a,), has_endpoints=True)})
    with stage.world.udp_client(stage.client) as client:
        assert await stage.world.ask_udp(client, VIP, 53) == "a"


async def test_a_service_without_endpoints_refuses_and_an_unknown_address_too(stage: Stage) -> None:
    await stage.proxier.sync({WEB: web()})
    assert await refused(stage.ask(VIP, 80))
    assert await refused(stage.ask(VIP, 80, path=""))
    assert await refused(stage.ask("10.96.0.99", 80))


async def test_changes_are_followed(stage: Stage) -> None:
    a, b = await stage.backend_pod("a"), await stage.backend_pod("b")
    await stage.proxier.sync({WEB: web(a)})
    await stage.proxier.sync({WEB: web(b)})
    assert {await stage.ask(VIP, 80) for _ in range(5)} == {"b"}
    await stage.proxier.sync({WEB: web()})
    assert await refused(stage.ask(VIP, 80))
    await stage.proxier.sync({WEB: web(a)})
    assert await stage.ask(VIP, 80) == "a"
    await stage.proxier.sync({})
    assert await refused(stage.ask(VIP, 80))


async def test_an_established_connection_goes_on_when_rules_change(stage: Stage) -> None:
    path, ip = await stage.pod("echo")
    b = await stage.backend_pod("b")

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    with stage.world.inside(path):
        listening = socket.create_server(("0.0.0.0", 8080))
    async with await asyncio.start_server(echo, sock=listening):
        await stage.proxier.sync({WEB: web(Endpoint(ip, 8080))})
        with stage.world.inside(stage.client):
            client = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        loop = asyncio.get_running_loop()
        with client:
            await loop.sock_connect(client, (VIP, 80))
            for change in (web(b), web(), web(b, Endpoint(ip, 8080))):
                await stage.proxier.sync({WEB: change})
                await loop.sock_sendall(client, b"still there")
                async with asyncio.timeout(2):
                    assert await loop.sock_recv(client, 100) == b"still there"


async def test_a_node_port_answers_on_every_address_of_the_node(stage: Stage) -> None:
    a = await stage.backend_pod("a")
    await stage.proxier.sync({WEB: web(a, node_port=30080)})
    assert await stage.ask(HOST_IP, 30080, path=stage.world.outside) == "a"
    assert await stage.ask(HOST_IP, 30080, path="") == "a"
    assert await stage.ask("127.0.0.1", 30080, path="") == "a"
    assert await stage.ask(HOST_IP, 30080) == "a", "from a pod"
    assert await stage.ask(HOST_IP, 30080, path=stage.pods["a"]) == "a", "from the endpoint itself"
    assert await stage.ask(VIP, 80) == "a"
    await stage.proxier.sync({WEB: web(node_port=30080)})
    assert await refused(stage.ask(HOST_IP, 30080, path=stage.world.outside))


async def test_node_port_over_udp(stage: Stage) -> None:
    a = await stage.backend_pod("a")
    port = ServicePort("UDP", VIP, 53, node_port=30053, cluster_endpoints=(a,), has_endpoints=True)
    await stage.proxier.sync({DNS: port})
    with stage.world.udp_client(stage.world.outside) as client:
        assert await stage.world.ask_udp(client, HOST_IP, 30053) == "a"


async def test_external_policy_cluster_hides_the_client_and_local_shows_it(stage: Stage) -> None:
    a = await stage.backend_pod("a")
    await stage.proxier.sync({WEB: web(a, node_port=30080)})
    assert await stage.peer(HOST_IP, 30080, path=stage.world.outside) == "10.244.0.1"
    await stage.proxier.sync({WEB: web(a, node_port=30080, external_local=True, local_endpoints=(a,))})
    assert await stage.peer(HOST_IP, 30080, path=stage.world.outside) == OUTSIDE_IP


async def test_external_policy_local_without_local_endpoints_drops_outsiders_only(stage: Stage) -> None:
    a = await stage.backend_pod("a")
    await stage.proxier.sync({WEB: web(a, node_port=30080, external_local=True)})
    assert not await refused(stage.ask(HOST_IP, 30080, path=stage.world.outside))
    assert await stage.ask(HOST_IP, 30080) == "a", "a pod is not outside"
    assert await stage.ask(HOST_IP, 30080, path="") == "a", "nor is the node"


async def test_internal_policy_local(stage: Stage) -> None:
    a = await stage.backend_pod("a")
    await stage.proxier.sync({WEB: web(internal_local=True, local_endpoints=(a,), has_endpoints=True)})
    assert await stage.ask(VIP, 80) == "a"
    await stage.proxier.sync({WEB: web(internal_local=True, has_endpoints=True)})
    assert not await refused(stage.ask(VIP, 80)), "dropped: elsewhere it is served"


async def test_external_and_load_balancer_addresses(stage: Stage) -> None:
    a = await stage.backend_pod("a")
    addresses = {"external_ips": ("203.0.113.5",), "load_balancer_ips": ("203.0.113.6",)}
    run("ip", "-n", stage.world.outside.rpartition("/")[2], "route", "add", "203.0.113.0/24", "via", HOST_IP)
    await stage.proxier.sync({WEB: web(a, **addresses)})
    for ip in ("203.0.113.5", "203.0.113.6"):
        assert await stage.ask(ip, 80, path=stage.world.outside) == "a"
        assert await stage.ask(ip, 80) == "a"
    await stage.proxier.sync({WEB: web(**addresses)})
    for ip in ("203.0.113.5", "203.0.113.6"):
        run("ip", "addr", "add", f"{ip}/32", "dev", "lo")
        assert await refused(stage.ask(ip, 80, path=stage.world.outside))


async def test_source_ranges_shut_the_load_balancer_to_others(stage: Stage) -> None:
    a = await stage.backend_pod("a")
    run("ip", "-n", stage.world.outside.rpartition("/")[2], "route", "add", "203.0.113.0/24", "via", HOST_IP)
    await stage.proxier.sync({WEB: web(a, load_balancer_ips=("203.0.113.6",), source_ranges=(f"{OUTSIDE_IP}/32",))})
    assert await stage.ask("203.0.113.6", 80, path=stage.world.outside) == "a"
    await stage.proxier.sync({WEB: web(a, load_balancer_ips=("203.0.113.6",), source_ranges=("198.51.100.0/24",))})
    assert not await refused(stage.ask("203.0.113.6", 80, path=stage.world.outside))


async def test_session_affinity_keeps_a_client_at_its_endpoint(stage: Stage) -> None:
    endpoints = tuple([await stage.backend_pod(name) for name in "abc"])
    sticky = web(*endpoints, affinity_s=10800)
    await stage.proxier.sync({WEB: sticky})
    first = await stage.ask(VIP, 80)
    assert {await stage.ask(VIP, 80) for _ in range(12)} == {first}
    other = ServicePortName("default", "other", "", "TCP")
    await stage.proxier.sync({WEB: web(*endpoints, affinity_s=10800, node_port=30080), other: web()})
    assert {await stage.ask(VIP, 80) for _ in range(6)} == {first}, "a change elsewhere is not felt"
    assert {await stage.ask(HOST_IP, 30080) for _ in range(6)} == {first}, "nor is another way in"


async def test_session_affinity_ends_after_its_time(stage: Stage) -> None:
    endpoints = tuple([await stage.backend_pod(name) for name in "abc"])
    await stage.proxier.sync({WEB: web(*endpoints, affinity_s=1)})
    seen = set()
    deadline = time.monotonic() + 20
    while len(seen) < 2 and time.monotonic() < deadline:
        seen.add(await stage.ask(VIP, 80))
        await asyncio.sleep(1.1)
    assert len(seen) > 1


async def test_a_udp_flow_leaves_an_endpoint_that_is_gone(stage: Stage) -> None:
    a, b = await stage.backend_pod("a"), await stage.backend_pod("b")

    def dns(*endpoints: Endpoint) -> ServicePort:
        return ServicePort("UDP", VIP, 53, node_port=30053, cluster_endpoints=endpoints, has_endpoints=bool(endpoints))

    await stage.proxier.sync({DNS: dns(a)})
    with stage.world.udp_client(stage.client) as pod, stage.world.udp_client(stage.world.outside) as outside:
        assert await stage.world.ask_udp(pod, VIP, 53) == "a"
        assert await stage.world.ask_udp(outside, HOST_IP, 30053) == "a"
        await stage.proxier.sync({DNS: dns(b)})
        assert await stage.world.ask_udp(pod, VIP, 53) == "b", "from the same port of the client"
        assert await stage.world.ask_udp(outside, HOST_IP, 30053) == "b"


async def test_a_flush_by_someone_else_is_mended_within_five_seconds(stage: Stage) -> None:
    a = await stage.backend_pod("a")
    await stage.proxier.sync({WEB: web(a, node_port=30080)})
    iptables = f"iptables-{stage.backend}"
    run(iptables, "-F")
    run(iptables, "-t", "nat", "-F")

    async def served() -> bool:
        try:
            return {
                await stage.ask(VIP, 80, timeout_s=0.3),
                await stage.ask(HOST_IP, 30080, path=stage.world.outside, timeout_s=0.3),
            } == {"a"}
        except OSError:
            return False

    await eventually(served, within_s=5)
    run(iptables, "-t", "nat", "-D", "PREROUTING", "-j", NAMES.chain("SERVICES"))
    await eventually(served, within_s=5)


async def test_a_new_process_takes_over_without_a_gap_and_removes_what_is_no_longer_wanted(
    stage: Stage, tmp_path: Path
) -> None:
    a = await stage.backend_pod("a")
    gone = ServicePortName("default", "gone", "", "TCP")
    old = ServicePort("TCP", "10.96.0.31", 80, node_port=30081, cluster_endpoints=(a,), has_endpoints=True)
    await stage.proxier.sync({WEB: web(a), gone: old})
    await stage.network.stop()
    await stage.firewall.stop()
    firewall = Firewall(NAMES, backend=stage.backend)
    network = BridgeNetwork(NAMES, NETWORK, tmp_path, firewall)
    proxier = IptablesProxier(firewall, RULES)
    for step in (
        firewall.start,
        network.start,
        lambda: network.restore({"client", "a"}),
        proxier.start,
        lambda: proxier.sync({WEB: web(a)}),
    ):
        await step()
        assert await stage.ask(VIP, 80) == "a", "served on at each step"
        assert await stage.ask(VIP, 80, path="") == "a"
    assert await refused(stage.ask("10.96.0.31", 80))
    assert "30081" not in run(f"iptables-{stage.backend}-save")
    await network.stop()
    await firewall.stop()


async def test_cleanup_leaves_no_trace(world: World, tmp_path: Path) -> None:
    before = kernel_state()
    stage = Stage(world, tmp_path, "nft")
    await stage.start()
    a = await stage.backend_pod("a")
    await stage.proxier.sync({WEB: web(a, node_port=30080, affinity_s=60), DNS: ServicePort("UDP", VIP, 53)})
    await stage.stop()
    cleaner = Firewall(NAMES)
    await IptablesProxier(cleaner, RULES).cleanup()
    assert "KONE-SERVICES" not in run("iptables-save")
    assert "KONE-FORWARD" in run("iptables-save"), "only its own"
    await cleaner.cleanup()
    await remove_links(NAMES)
    assert kernel_state() == before
