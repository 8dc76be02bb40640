"""NetworkPolicies with real packets: pods in namespaces of their own, judged by the kernel."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from kone.apimachinery.objects import Object
from kone.net.bridge import BridgeNetwork
from kone.net.firewall import Firewall
from kone.net.names import Names
from kone.net.network_policy import pod_facts, ruleset_of
from kone.net.nft_ruleset import Ruleset
from kone.net.nft_table import NftTable
from tests.net.objects import pod, policy
from tests.net.test_bridge import CONFIG, eventually
from tests.net.world import HOST_IP, OUTSIDE_IP, World, kernel_state, run

pytestmark = pytest.mark.ring3

NAMESPACES = {"x": {"ns": "x"}, "y": {"ns": "y"}}
REFUSED_S = 0.3  # a packet that is dropped makes its sender wait
TABLE = Names().policy_table


class Setting:
    """Pods x/a, x/b and y/a that listen on ports 80 and 81, and what may reach what."""

    def __init__(self, world: World, data_dir: Path) -> None:
        self.world = world
        self.firewall = Firewall(Names())
        self.network = BridgeNetwork(Names(), CONFIG, data_dir, self.firewall)
        self.table = NftTable(TABLE)
        self.paths: dict[str, str] = {}
        self.ips: dict[str, str] = {}
        self.pods: list[Object] = []
        self._servers = AsyncExitStack()

    async def start(self) -> None:
        await self.firewall.start()
        await self.network.start()
        await self.table.start()
        for name in ("x/a", "x/b", "y/a"):
            path = self.world.namespace()
            uid = name.replace("/", "-")
            (ip,) = await self.network.attach(pod_uid=uid, pod_name=uid, namespace=name[0], netns=path, host_ports=())
            self.paths[name], self.ips[name] = path, ip
            self.pods.append(pod(name[2:], ip, namespace=name[0], ports=[("http", 80)]))
            for port in (80, 81):
                await self._servers.enter_async_context(await self.world.serve(path, port, name))
        await self._servers.enter_async_context(await self.world.serve(self.world.outside, 80, "outside"))
        self.paths |= {"host": "", "outside": self.world.outside}
        self.ips |= {"host": HOST_IP, "outside": OUTSIDE_IP}

    async def stop(self) -> None:
        await self._servers.aclose()
        await self.table.stop()
        await self.network.stop()
        await self.firewall.stop()

    async def enforce(self, *policies: Object) -> None:
        await self.table.hold(self.compiled(policies))

    def compiled(self, policies: Sequence[Object]) -> Ruleset | None:
        facts = [found for each in self.pods if (found := pod_facts(each, "n1"))]
        return ruleset_of(policies, facts, NAMESPACES)

    async def reaches(self, source: str, target: str, port: int = 80) -> bool:
        try:
            answered, _ = await self.world.ask(
                self.paths[source], self.ips.get(target, target), port, timeout_s=REFUSED_S
            )
        except (TimeoutError, OSError):
            return False
        return bool(answered)

    async def who_reaches(self, target: str, port: int = 80) -> str:
        sources = [name for name in ("x/a", "x/b", "y/a", "host") if name != target]
        found = await asyncio.gather(*(self.reaches(source, target, port) for source in sources))
        return " ".join(source for source, reached in zip(sources, found, strict=True) if reached)


@pytest.fixture
async def setting(world: World, tmp_path: Path) -> AsyncIterator[Setting]:
    setting = Setting(world, tmp_path)
    await setting.start()
    yield setting
    await setting.stop()


async def test_ingress_is_denied_by_default_but_from_the_node(setting: Setting) -> None:
    assert await setting.who_reaches("x/a") == "x/b y/a host"
    await setting.enforce(policy("deny", "x", ingress=[]))
    assert await setting.who_reaches("x/a") == "host", "probes come from the node"
    assert await setting.who_reaches("y/a") == "x/a x/b host", "another namespace, and egress, are untouched"
    await setting.enforce()
    assert await setting.who_reaches("x/a") == "x/b y/a host"


async def test_ingress_by_peers_and_ports(setting: Setting) -> None:
    from_b = {"from": [{"podSelector": {"matchLabels": {"pod": "b"}}}], "ports": [{"port": 80}]}
    from_y = {"from": [{"namespaceSelector": {"matchLabels": {"ns": "y"}}}], "ports": [{"port": 81, "endPort": 90}]}
    await setting.enforce(policy("p", "x", pods={"pod": "a"}, ingress=[from_b, from_y]))
    assert await setting.who_reaches("x/a", 80) == "x/b host"
    assert await setting.who_reaches("x/a", 81) == "y/a host"
    named = {"ports": [{"port": "http"}]}
    await setting.enforce(policy("p", "x", pods={"pod": "a"}, ingress=[named]))
    assert await setting.who_reaches("x/a", 80) == "x/b y/a host"
    assert await setting.who_reaches("x/a", 81) == "host"


async def test_egress(setting: Setting) -> None:
    await setting.enforce(policy("p", "x", egress=[]))
    assert not await setting.reaches("x/a", "x/b")
    assert not await setting.reaches("x/a", "outside")
    assert await setting.reaches("y/a", "outside")
    assert await setting.reaches("y/a", "x/a"), "an answer is no new flow"
    block = {"to": [{"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.8/29"]}}]}
    await setting.enforce(policy("p", "x", egress=[block]))
    assert await setting.reaches("x/a", "outside")
    assert not await setting.reaches("x/a", "x/b")
    block["to"][0]["ipBlock"]["except"] = [f"{OUTSIDE_IP}/32"]
    await setting.enforce(policy("p", "x", egress=[block]))
    assert not await setting.reaches("x/a", "outside")


async def test_both_sides_must_allow(setting: Setting) -> None:
    await setting.enforce(policy("out", "x", pods={"pod": "b"}, egress=[]), policy("in", "x", ingress=[{}]))
    assert await setting.who_reaches("x/a") == "y/a host"
    await setting.enforce(policy("out", "x", egress=[{}]), policy("in", "x", ingress=[]))
    assert await setting.who_reaches("x/a") == "host"


async def test_a_rewritten_destination_is_judged_by_where_it_leads(setting: Setting) -> None:
    """By a Service, from another pod and from the very pod."""
    to = f"{setting.ips['x/a']}:80"
    run("iptables", "-t", "nat", "-A", "PREROUTING", "-d", "10.96.0.50", "-p", "tcp", "-j", "DNAT", "--to", to)
    run("iptables", "-t", "nat", "-A", "POSTROUTING", "-m", "conntrack", "--ctstate", "DNAT", "-j", "MASQUERADE")
    await setting.enforce(policy("p", "x", pods={"pod": "a"}, ingress=[{"from": [{"podSelector": {}}]}]))
    assert await setting.reaches("x/b", "10.96.0.50"), "the source is looked at before it is masqueraded"
    assert not await setting.reaches("y/a", "10.96.0.50")
    await setting.enforce(policy("p", "x", ingress=[], egress=[]))
    assert await setting.reaches("x/a", "10.96.0.50"), "a pod always reaches itself"
    assert not await setting.reaches("x/b", "10.96.0.50")


async def test_established_flows_go_on(setting: Setting) -> None:
    loop = asyncio.get_running_loop()
    with setting.world.inside(setting.paths["x/a"]):
        server = await setting.world.serve_udp(setting.paths["x/a"], 53, "x/a")
    with setting.world.udp_client(setting.paths["x/b"]) as client:
        assert await setting.world.ask_udp(client, setting.ips["x/a"], 53) == "x/a"
        await setting.enforce(policy("p", "x", ingress=[]))
        assert await setting.world.ask_udp(client, setting.ips["x/a"], 53) == "x/a"
        with setting.world.udp_client(setting.paths["x/b"]) as other:
            await loop.sock_sendto(other, b"?", (setting.ips["x/a"], 53))
            with pytest.raises(TimeoutError):
                await setting.world.ask_udp(other, setting.ips["x/a"], 53, timeout_s=REFUSED_S)
    server.close()


async def test_a_table_that_someone_flushed_comes_back(setting: Setting) -> None:
    await setting.enforce(policy("deny", "x", ingress=[]))
    held = run("nft", "list", "table", *TABLE.split())
    for harm in (
        ["flush", "ruleset"],
        ["delete", "table", *TABLE.split()],
        ["flush", "chain", *TABLE.split(), "judge-ingress"],
        ["flush", "map", *TABLE.split(), "pods4-ingress"],
    ):
        run("nft", *harm)
        await eventually(lambda: TABLE in run("nft", "list", "tables"), within_s=5)
        await eventually(lambda: run("nft", "list", "table", *TABLE.split()) == held, within_s=5)
    assert await setting.who_reaches("x/a") == "host"


async def test_kones_own_iptables_is_nobody_elses(setting: Setting) -> None:
    await setting.enforce(policy("deny", "x", ingress=[]))
    path = setting.world.namespace()
    await setting.network.attach(pod_uid="n", pod_name="n", namespace="x", netns=path, host_ports=())
    await asyncio.sleep(0.3)
    assert setting.table.mended == 0


async def test_nothing_is_left_without_policies(world: World, tmp_path: Path) -> None:
    before = kernel_state()
    table = NftTable(TABLE)
    await table.hold(ruleset_of([policy("p", ingress=[])], [], {}))
    assert kernel_state() != before
    await table.hold(None)
    assert kernel_state() == before
    await table.hold(ruleset_of([policy("p", ingress=[])], [], {}))
    assert await NftTable(TABLE).remove(), "by another process, as cleanup does"
    assert kernel_state() == before
    await table.stop()


async def test_a_hundred_policies_on_a_hundred_pods_change_within_a_second(world: World) -> None:
    pods = [pod(f"p{n}", f"10.244.0.{n + 2}", namespace="x", ports=[("http", 80)]) for n in range(101)]
    peers = [{"podSelector": {"matchLabels": {"pod": "p1"}}}, {"namespaceSelector": {}}]
    policies = [
        policy(f"n{n}", "x", ingress=[{"from": peers, "ports": [{"port": "http"}, {"port": n + 1}]}], egress=[{}])
        for n in range(100)
    ]
    table = NftTable(TABLE)
    took_s = []
    for these, on in ((policies, pods[:100]), (policies, pods), (policies[1:], pods), (policies, pods)):
        began = time.monotonic()
        facts = [found for each in on if (found := pod_facts(each, "n1"))]
        await table.hold(ruleset_of(these, facts, NAMESPACES))
        took_s.append(time.monotonic() - began)
    assert max(took_s) < 1, f"{took_s}: 0.3 s for the first and 0.1 s for a change on an idle machine"
    await table.remove()
    await table.stop()
