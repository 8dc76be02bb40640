"""The pods' network with real links and packets, in namespaces of its own."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from kone.net.bridge import BridgeNetwork, NetworkConfig, remove_links
from kone.net.firewall import Backend, Firewall
from kone.net.host_ports import HostPort, PortTaken
from kone.net.links import LinkError
from kone.net.names import Names
from tests.net.world import HOST_IP, OUTSIDE_IP, World, kernel_state, run

pytestmark = pytest.mark.ring3

CONFIG = NetworkConfig(
    pod_cidrs=["10.244.0.0/24"],
    cluster_cidrs=["10.244.0.0/16"],
    service_cidrs=["10.96.0.0/16"],
    local_addresses=["10.96.0.10"],
)

DEFAULT = Names()


class Node:
    """A network with its firewall, started and stopped together."""

    def __init__(
        self,
        data_dir: Path,
        names: Names = DEFAULT,
        config: NetworkConfig = CONFIG,
        backend: Backend | None = None,
    ) -> None:
        families = sorted({6 if ":" in cidr else 4 for cidr in config.pod_cidrs})
        self.firewalls = [Firewall(names, family=family, backend=backend) for family in families]
        self.network = BridgeNetwork(names, config, data_dir, *self.firewalls)

    async def __aenter__(self) -> BridgeNetwork:
        for firewall in self.firewalls:
            await firewall.start()
        await self.network.start()
        return self.network

    async def __aexit__(self, *_: object) -> None:
        await self.network.stop()
        for firewall in self.firewalls:
            await firewall.stop()


@pytest.fixture
async def node(world: World, tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path)
    async with node:
        yield node


async def attach(network: BridgeNetwork, uid: str, netns: str, *ports: HostPort) -> str:
    (ip,) = await network.attach(pod_uid=uid, pod_name=uid, namespace="default", netns=netns, host_ports=ports)
    return ip


async def eventually(check: Callable[[], bool], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not check():
        assert time.monotonic() < deadline, f"not so within {within_s} s"
        await asyncio.sleep(0.05)


async def test_pod_to_pod_to_host_and_to_the_world(world: World, node: Node) -> None:
    a, b = world.namespace(), world.namespace()
    ip_a, ip_b = await attach(node.network, "a", a), await attach(node.network, "b", b)
    async with (
        await world.serve(b, 80, "b"),
        await world.serve("", 81, "host"),
        await world.serve(world.outside, 82, "outside"),
    ):
        assert await world.ask(a, ip_b, 80) == ("b", ip_a)
        assert await world.ask("", ip_b, 80) == ("b", "10.244.0.1")
        assert await world.ask(a, HOST_IP, 81) == ("host", ip_a)
        assert await world.ask(a, OUTSIDE_IP, 82) == ("outside", HOST_IP), "masqueraded"


async def test_the_pod_sees_a_usual_namespace(world: World, node: Node) -> None:
    a = world.namespace()
    ip = await attach(node.network, "a", a)
    name = a.rpartition("/")[2]
    links = run("ip", "-n", name, "-br", "link")
    assert "lo               UNKNOWN" in links, "lo is up"
    assert "eth0" in links
    assert "0a:58:0a:f4:00:02" in links, "the MAC follows from the address"
    assert "mtu 1400" in run("ip", "-n", name, "link", "show", "eth0"), "as the uplink's"
    assert run("ip", "-n", name, "route").splitlines()[0].startswith("default via 10.244.0.1 dev eth0")
    assert f"{ip}/32" in run("ip", "-n", name, "addr", "show", "eth0")


async def test_traffic_passes_a_forward_policy_of_drop(world: World, node: Node) -> None:
    run("iptables", "-P", "FORWARD", "DROP")
    a, b = world.namespace(), world.namespace()
    await attach(node.network, "a", a)
    ip_b = await attach(node.network, "b", b)
    async with await world.serve(b, 80, "b"), await world.serve(world.outside, 82, "outside"):
        assert (await world.ask(a, ip_b, 80))[0] == "b"
        assert (await world.ask(a, OUTSIDE_IP, 82))[0] == "outside"


async def test_a_host_port_leads_into_the_pod_from_everywhere(world: World, node: Node) -> None:
    a, b = world.namespace(), world.namespace()
    ip_a = await attach(node.network, "a", a, HostPort("TCP", "", 8080, 80), HostPort("TCP", "127.0.0.1", 8081, 80))
    ip_b = await attach(node.network, "b", b)
    async with await world.serve(a, 80, "a"):
        assert await world.ask(world.outside, HOST_IP, 8080) == ("a", OUTSIDE_IP), "the client's address is kept"
        assert (await world.ask("", "127.0.0.1", 8080))[0] == "a"
        assert (await world.ask("", HOST_IP, 8080))[0] == "a"
        assert await world.ask(b, HOST_IP, 8080) == ("a", ip_b)
        assert (await world.ask(a, HOST_IP, 8080))[0] == "a", "and from the pod itself"
        assert (await world.ask("", "127.0.0.1", 8081))[0] == "a"
        with pytest.raises(OSError):
            await world.ask(world.outside, HOST_IP, 8081)
        await node.network.detach(pod_uid="a")
        with pytest.raises(OSError):
            await world.ask(world.outside, HOST_IP, 8080)
    assert ip_a not in run("iptables-save")


async def test_attach_and_detach_are_idempotent(world: World, node: Node) -> None:
    a = world.namespace()
    ip = await attach(node.network, "a", a)
    links = sorted(os.listdir("/proc/sys/net/ipv4/conf"))
    assert await attach(node.network, "a", a) == ip
    assert sorted(os.listdir("/proc/sys/net/ipv4/conf")) == links
    await node.network.detach(pod_uid="a")
    await node.network.detach(pod_uid="a")
    assert "kv" not in run("ip", "-br", "link")


async def test_a_new_sandbox_of_the_same_pod_takes_over_its_address(world: World, node: Node) -> None:
    a, again = world.namespace(), world.namespace()
    ip = await attach(node.network, "a", a)
    world.forget(a)
    assert await attach(node.network, "a", again) == ip
    async with await world.serve(again, 80, "again"):
        assert (await world.ask("", ip, 80))[0] == "again"


async def test_detach_works_when_the_namespace_is_gone(world: World, node: Node) -> None:
    a = world.namespace()
    await attach(node.network, "a", a)
    world.forget(a)
    await node.network.detach(pod_uid="a")
    assert "kv" not in run("ip", "-br", "link")


async def test_a_namespace_that_is_not_there_leaves_nothing_behind(world: World, node: Node, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="opening network namespace /proc/0/ns/net"):
        await attach(node.network, "a", "/proc/0/ns/net")
    assert not node.network.addresses


async def test_ten_pods_at_once_take_few_milliseconds_each(world: World, node: Node) -> None:
    await attach(node.network, "warm", world.namespace())
    namespaces = [world.namespace() for _ in range(10)]
    begin = time.monotonic()
    ips = await asyncio.gather(*(attach(node.network, f"p{n}", path) for n, path in enumerate(namespaces)))
    took_s = time.monotonic() - begin
    assert len(set(ips)) == 10
    assert took_s < 3, "10 x 15 ms is the budget on an idle machine (make bench)"


async def test_a_restart_keeps_live_pods_and_frees_the_others(world: World, tmp_path: Path) -> None:
    live, dead = world.namespace(), world.namespace()
    async with Node(tmp_path) as network:
        ip = await attach(network, "live", live, HostPort("TCP", "", 8080, 80))
        await attach(network, "dead", dead, HostPort("TCP", "", 8081, 80))
    async with await world.serve(live, 80, "live"):
        assert (await world.ask(world.outside, HOST_IP, 8080))[0] == "live", "while kone is gone"
        async with Node(tmp_path) as network:
            assert (await world.ask(world.outside, HOST_IP, 8080))[0] == "live", "before restore"
            await network.restore({"live"})
            assert (await world.ask(world.outside, HOST_IP, 8080))[0] == "live"
            assert await attach(network, "live", live, HostPort("TCP", "", 8080, 80)) == ip
            assert dict(network.addresses) == {"live": [ip]}
    assert run("ip", "-br", "link").count("kv") == 1
    assert "8081" not in run("iptables-save")


async def test_with_its_file_lost_the_kernel_tells_who_has_which_address(world: World, tmp_path: Path) -> None:
    live = world.namespace()
    async with Node(tmp_path) as network:
        ip = await attach(network, "live", live)
    (tmp_path / "net" / "ipam.json").unlink()
    async with Node(tmp_path) as network:
        assert await attach(network, "other", world.namespace()) != ip
        await network.restore({"live", "other"})
        assert await attach(network, "live", live) == ip


async def test_a_cancelled_attach_leaves_nothing_behind(world: World, node: Node) -> None:
    a = world.namespace()
    for turns in range(0, 12, 3):
        task = asyncio.create_task(attach(node.network, "a", a, HostPort("TCP", "", 8080, 80)))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not node.network.addresses
        assert "kv" not in run("ip", "-br", "link")
        assert "8080" not in run("iptables-save")
    await attach(node.network, "a", a)


@pytest.mark.parametrize("now", ["nft", "legacy"])
async def test_rules_of_a_run_with_the_other_back_end_go(world: World, tmp_path: Path, now: Backend) -> None:
    earlier: Backend = "legacy" if now == "nft" else "nft"
    async with Node(tmp_path, backend=earlier):
        pass
    async with Node(tmp_path, backend=now):
        assert "KONE" not in run(f"iptables-{earlier}-save")
        assert "KONE" in run(f"iptables-{now}-save")
    await Firewall(DEFAULT).cleanup()
    assert "KONE" not in run(f"iptables-{now}-save"), "cleanup looks into both"


async def test_rules_flushed_by_someone_else_come_back(world: World, node: Node) -> None:
    a = world.namespace()
    await attach(node.network, "a", a, HostPort("TCP", "", 8080, 80))
    before = run("iptables-save", "-t", "nat").count("KONE"), run("iptables-save", "-t", "filter").count("KONE")
    run("iptables", "-F")
    run("iptables", "-t", "nat", "-F")

    def mended() -> bool:
        now = run("iptables-save", "-t", "nat").count("KONE"), run("iptables-save", "-t", "filter").count("KONE")
        return now == before

    await eventually(mended, within_s=5)
    run("nft", "flush", "ruleset")
    await eventually(mended, within_s=5)


async def test_the_jump_goes_back_before_what_could_refuse(world: World, node: Node) -> None:
    run("iptables", "-I", "FORWARD", "1", "-j", "REJECT")

    def first() -> bool:
        return run("iptables", "-S", "FORWARD").splitlines()[1] == "-A FORWARD -j KONE-FORWARD"

    await eventually(first, within_s=5)
    run("iptables", "-N", "DOCKER-USER")
    run("iptables", "-I", "FORWARD", "1", "-j", "DOCKER-USER")
    await asyncio.sleep(1)
    assert not first(), "Docker's own jumps may be before it"


@pytest.mark.parametrize(
    "harm",
    [
        ["link", "del", "kone0"],
        ["link", "set", "kone0", "down"],
        ["addr", "del", "10.244.0.1/24", "dev", "kone0"],
        ["addr", "flush", "dev", "kone0"],
        ["route", "del", "10.96.0.0/16"],
    ],
    ids=" ".join,
)
async def test_a_bridge_that_someone_else_harmed_is_mended(world: World, node: Node, harm: list[str]) -> None:
    a, b = world.namespace(), world.namespace()
    await attach(node.network, "a", a)
    ip_b = await attach(node.network, "b", b)

    def state() -> list[str]:
        words = (run("ip", "route") + run("ip", "-br", "-4", "addr")).split()
        return sorted(word for word in words if word not in ("UP", "DOWN", "linkdown"))  # pods' ends come and go

    before = state()
    run("ip", *harm)
    await eventually(lambda: state() == before, within_s=5)
    async with await world.serve(b, 80, "b"):
        assert (await world.ask(a, ip_b, 80))[0] == "b"
        assert (await world.ask("", ip_b, 80))[0] == "b"


async def test_forwarding_that_someone_else_turned_off_comes_back(world: World, node: Node) -> None:
    a = world.namespace()
    await attach(node.network, "a", a)
    switch = Path("/proc/sys/net/ipv4/ip_forward")
    switch.write_text("0")
    await eventually(lambda: switch.read_text().strip() == "1", within_s=5)
    async with await world.serve(world.outside, 82, "outside"):
        assert (await world.ask(a, OUTSIDE_IP, 82))[0] == "outside"


async def test_other_ranges_take_the_old_ones_away(world: World, tmp_path: Path) -> None:
    async with Node(tmp_path):
        pass
    other = NetworkConfig(["10.130.0.0/24"], ["10.130.0.0/16"], ["10.190.0.0/17"])
    async with Node(tmp_path, config=other):
        assert "10.244." not in run("ip", "addr")
        assert "10.96." not in run("ip", "addr") + run("ip", "route")


async def test_a_range_that_the_host_uses_already_is_told_of(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Node(tmp_path):
        assert "overlap" not in caplog.text
    async with Node(tmp_path, config=NetworkConfig(["192.0.2.128/25"], ["192.0.2.128/25"])):
        assert "192.0.2.128/25 and the host's 192.0.2.0/24 on up0" in caplog.text


async def test_the_hosts_own_namespace_is_never_wired(world: World, node: Node) -> None:
    with pytest.raises(LinkError, match="the host's own"):
        await attach(node.network, "a", "/proc/thread-self/ns/net")


async def test_without_br_netfilter_it_is_the_same(world: World, node: Node) -> None:
    Path("/proc/sys/net/bridge/bridge-nf-call-iptables").write_text("0")
    a, b = world.namespace(), world.namespace()
    ip_a = await attach(node.network, "a", a, HostPort("TCP", "", 8080, 80))
    ip_b = await attach(node.network, "b", b)
    async with await world.serve(a, 80, "a"):
        assert await world.ask(b, ip_a, 80) == ("a", ip_b)
        assert await world.ask(b, HOST_IP, 8080) == ("a", ip_b)
        assert (await world.ask(a, HOST_IP, 8080))[0] == "a"


async def test_a_udp_host_port_follows_its_pod(world: World, node: Node) -> None:
    for name in ("old", "new"):
        path = world.namespace()
        await attach(node.network, name, path, HostPort("UDP", "", 5353, 53))
        transport = await world.serve_udp(path, 53, name)
        with world.udp_client(world.outside, source_port=4000) as client:
            assert await world.ask_udp(client, HOST_IP, 5353) == name
        transport.close()
        await node.network.detach(pod_uid=name)


async def test_a_host_port_that_another_pod_has_is_refused_until_it_is_free(world: World, node: Node) -> None:
    b = world.namespace()
    await attach(node.network, "a", world.namespace(), HostPort("TCP", "", 8080, 80))
    with pytest.raises(PortTaken, match="host port 8080/TCP is in use by pod a"):
        await attach(node.network, "b", b, HostPort("TCP", HOST_IP, 8080, 80))
    assert list(node.network.addresses) == ["a"]
    await attach(node.network, "b", b, HostPort("UDP", "", 8080, 80))
    await node.network.detach(pod_uid="b")
    await node.network.detach(pod_uid="a")
    await attach(node.network, "b", b, HostPort("TCP", HOST_IP, 8080, 80))


async def test_pods_follow_the_uplinks_mtu(world: World, node: Node) -> None:
    a = world.namespace()
    await attach(node.network, "a", a)
    inside = a.rpartition("/")[2]
    run("ip", "link", "set", "up0", "mtu", "1300")
    await eventually(lambda: "mtu 1300" in run("ip", "-n", inside, "link", "show", "eth0"), within_s=5)
    assert "mtu 1300" in run("ip", "link", "show", "kone0")
    run("ip", "route", "del", "default")
    await asyncio.sleep(0.3)
    assert "mtu 1300" in run("ip", "link", "show", "kone0"), "without an uplink it stays"
    other = ["ip", "link", "add", "other0", "mtu", "1350", "type", "veth", "peer", "other1"]
    run(*other, "netns", world.outside.rpartition("/")[2])
    run("ip", "-n", world.outside.rpartition("/")[2], "link", "set", "other1", "up")
    run("ip", "addr", "add", "198.51.100.2/24", "dev", "other0")
    run("ip", "link", "set", "other0", "up")
    run("ip", "route", "add", "default", "via", "198.51.100.1")
    await eventually(lambda: "mtu 1350" in run("ip", "-n", inside, "link", "show", "eth0"), within_s=5)


async def test_bandwidth_is_limited_as_annotations_say(world: World, node: Node) -> None:
    a = world.namespace()
    limits = {"kubernetes.io/ingress-bandwidth": "8M", "kubernetes.io/egress-bandwidth": "16M"}
    (ip,) = await node.network.attach(
        pod_uid="a", pod_name="a", namespace="default", netns=a, host_ports=(), annotations=limits
    )
    assert await node.network.attach(  # once more, as after a restart
        pod_uid="a", pod_name="a", namespace="default", netns=a, host_ports=(), annotations=limits
    ) == [ip]
    assert await carried(world, "", a, ip) == pytest.approx(8e6, rel=0.4)
    assert await carried(world, a, world.outside, OUTSIDE_IP) == pytest.approx(16e6, rel=0.4)


async def carried(world: World, source: str, target: str, address: str) -> float:
    """Bits a second that a TCP connection carries, measured over half a second after its start."""
    loop = asyncio.get_running_loop()
    with world.inside(target):
        listening = socket.create_server(("0.0.0.0", 5001))
    listening.setblocking(False)
    with world.inside(source):
        client = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    with listening, client:
        await loop.sock_connect(client, (address, 5001))
        server, _ = await loop.sock_accept(listening)
        with server:
            sending = asyncio.create_task(_send_on(client))
            received = 0
            deadline = began = time.monotonic() + 0.2  # past the burst
            while time.monotonic() < deadline + 0.5:
                octets = len(await loop.sock_recv(server, 1 << 20))
                if time.monotonic() > began:
                    received += octets
            sending.cancel()
    return received * 8 / 0.5


async def _send_on(client: socket.socket) -> None:
    loop, octets = asyncio.get_running_loop(), bytes(1 << 16)
    while True:
        await loop.sock_sendall(client, octets)


async def test_cleanup_leaves_no_trace(world: World, tmp_path: Path) -> None:
    before = kernel_state()
    async with Node(tmp_path) as network:
        await attach(network, "a", world.namespace(), HostPort("TCP", "", 8080, 80))
    await Firewall(DEFAULT).cleanup()
    await remove_links(DEFAULT)
    assert kernel_state() == before


async def test_cleanup_spares_what_others_have(world: World, tmp_path: Path) -> None:
    run("iptables", "-t", "nat", "-A", "POSTROUTING", "-s", "10.9.0.0/16", "-j", "MASQUERADE")
    run("iptables", "-P", "INPUT", "DROP")
    before = kernel_state()
    other = NetworkConfig(["10.130.0.0/24"], ["10.130.0.0/16"])
    two = Names("two")
    async with Node(tmp_path / "1") as network, Node(tmp_path / "2", two, other) as second:
        await attach(network, "a", world.namespace())
        await attach(second, "a", world.namespace())
    await Firewall(DEFAULT).cleanup()
    await remove_links(DEFAULT)
    assert run("ip", "-br", "link").count("kone-two") == 1
    assert "KONE-two-FORWARD" in run("iptables-save")
    await Firewall(two).cleanup()
    await remove_links(two)
    assert kernel_state() == before
