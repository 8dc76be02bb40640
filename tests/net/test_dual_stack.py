"""Pods with an address of each family: real links and packets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kone.net.bridge import BridgeNetwork, NetworkConfig, remove_links
from kone.net.firewall import Firewall
from kone.net.host_ports import HostPort
from kone.net.names import Names
from kone.net.network_policy import pod_facts, ruleset_of
from kone.net.nft_table import NftTable
from tests.net.objects import pod, policy
from tests.net.test_bridge import CONFIG, DEFAULT, Node, eventually
from tests.net.world import HOST_IP6, OUTSIDE_IP, OUTSIDE_IP6, World, kernel_state, run

pytestmark = pytest.mark.ring3

DUAL = NetworkConfig(["10.244.0.0/24", "fd00:10:244::/64"], ["10.244.0.0/16", "fd00:10:244::/56"])
REFUSED_S = 0.3


@pytest.fixture
async def network(world: World, tmp_path: Path) -> AsyncIterator[BridgeNetwork]:
    world.add_ipv6()
    async with Node(tmp_path, config=DUAL) as network:
        yield network


async def attach(network: BridgeNetwork, uid: str, netns: str, *ports: HostPort) -> list[str]:
    return await network.attach(pod_uid=uid, pod_name=uid, namespace="default", netns=netns, host_ports=ports)


async def test_a_pod_is_reached_by_both_families(world: World, network: BridgeNetwork) -> None:
    a, b = world.namespace(), world.namespace()
    ips_a, ips_b = await attach(network, "a", a), await attach(network, "b", b)
    assert ips_a == ["10.244.0.2", "fd00:10:244::2"]
    async with await world.serve(b, 80, "b"), await world.serve(b, 80, "b", address="::"):
        for mine, its in zip(ips_a, ips_b, strict=True):
            assert await world.ask(a, its, 80) == ("b", mine), "at once: nobody asks around for the address"
            assert (await world.ask("", its, 80))[0] == "b"


async def test_what_leaves_for_the_world_is_masqueraded_but_with_exceptions(world: World, tmp_path: Path) -> None:
    world.add_ipv6()
    plain = NetworkConfig(DUAL.pod_cidrs, DUAL.cluster_cidrs, plain_cidrs=[f"{OUTSIDE_IP}/32", f"{OUTSIDE_IP6}/128"])
    outside = world.outside.rpartition("/")[2]
    a = world.namespace()
    async with await world.serve(world.outside, 82, "out", address="::"):
        async with Node(tmp_path, config=DUAL) as network:
            await attach(network, "a", a)
            assert await world.ask(a, OUTSIDE_IP6, 82) == ("out", HOST_IP6)
        async with Node(tmp_path, config=plain) as network:
            (_, ip6) = await attach(network, "a", a)
            run("ip", "-n", outside, "route", "add", DUAL.pod_cidrs[1], "via", HOST_IP6)
            assert await world.ask(a, OUTSIDE_IP6, 82) == ("out", ip6)


async def test_a_host_port_leads_into_the_pod_by_both_families(world: World, network: BridgeNetwork) -> None:
    a = world.namespace()
    await attach(network, "a", a, HostPort("TCP", "", 8080, 80), HostPort("TCP", HOST_IP6, 8081, 80))
    async with await world.serve(a, 80, "a", address="::"):
        assert await world.ask(world.outside, HOST_IP6, 8080) == ("a", OUTSIDE_IP6)
        assert (await world.ask(world.outside, HOST_IP6, 8081))[0] == "a"
        assert (await world.ask(a, HOST_IP6, 8080))[0] == "a", "and from the pod itself"
        await network.detach(pod_uid="a")
        with pytest.raises(OSError):
            await world.ask(world.outside, HOST_IP6, 8080)


async def test_addresses_and_rules_that_someone_takes_away_come_back(world: World, network: BridgeNetwork) -> None:
    def address() -> bool:
        return "fd00:10:244::1/64" in run("ip", "-6", "addr", "show", "kone0")

    run("ip", "-6", "addr", "flush", "dev", "kone0", "scope", "global")
    await eventually(address, within_s=5)
    before = run("ip6tables-save").count("KONE")
    run("ip6tables", "-F")
    run("ip6tables", "-t", "nat", "-F")
    await eventually(lambda: run("ip6tables-save").count("KONE") == before, within_s=5)


async def test_a_family_that_is_added_later_keeps_the_other_address(world: World, tmp_path: Path) -> None:
    world.add_ipv6()
    a = world.namespace()
    async with Node(tmp_path, config=CONFIG) as network:
        assert await attach(network, "a", a) == ["10.244.0.2"]
    async with Node(tmp_path, config=DUAL) as network:
        await network.restore({"a"})
        assert await attach(network, "a", a) == ["10.244.0.2", "fd00:10:244::2"]
        async with await world.serve(a, 80, "a", address="::"):
            assert (await world.ask("", "fd00:10:244::2", 80))[0] == "a"


async def test_the_kernel_remembers_both_addresses(world: World, tmp_path: Path) -> None:
    world.add_ipv6()
    a = world.namespace()
    async with Node(tmp_path, config=DUAL) as network:
        ips = await attach(network, "a", a)
    (tmp_path / "net" / "ipam.json").unlink()
    async with Node(tmp_path, config=DUAL) as network:
        assert not set(await attach(network, "b", world.namespace())) & set(ips)
        await network.restore({"a", "b"})
        assert await attach(network, "a", a) == ips


async def test_policies_judge_ipv6(world: World, network: BridgeNetwork) -> None:
    paths = {name: world.namespace() for name in ("a", "b", "c")}
    ips = {name: await attach(network, name, path) for name, path in paths.items()}
    facts = [found for name in paths if (found := pod_facts(pod(name, *ips[name], ports=[("http", 80)]), "n1"))]
    from_b = {"from": [{"podSelector": {"matchLabels": {"pod": "b"}}}], "ports": [{"port": "http"}]}
    table = NftTable(Names().policy_table)
    await table.hold(ruleset_of([policy("p", pods={"pod": "a"}, ingress=[from_b])], facts, {"default": {}}))
    async with await world.serve(paths["a"], 80, "a", address="::"):
        assert (await world.ask(paths["b"], ips["a"][1], 80))[0] == "a"
        assert (await world.ask("", ips["a"][1], 80))[0] == "a", "the node"
        with pytest.raises(TimeoutError):
            await world.ask(paths["c"], ips["a"][1], 80, timeout_s=REFUSED_S)
    await table.stop()


async def test_cleanup_leaves_no_trace(world: World, tmp_path: Path) -> None:
    world.add_ipv6()
    before = kernel_state()
    async with Node(tmp_path, config=DUAL) as network:
        await attach(network, "a", world.namespace(), HostPort("TCP", "", 8080, 80))
    for family in (4, 6):
        await Firewall(DEFAULT, family=family).cleanup()
    await remove_links(DEFAULT)
    assert kernel_state() == before
