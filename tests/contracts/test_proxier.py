"""The contract of a Proxier (net/proxier.py), with real packets in namespaces of their own, for every Proxier."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from kone.apimachinery.objects import Object
from kone.net import modes
from kone.net.bridge import remove_links
from kone.net.firewall import Firewall
from kone.net.service_map import Endpoint, Place, ServicePort, ServicePortName, service_map
from tests.contracts.proxiers import CONTESTANTS, DNS, NAMES, SLOWNESS, WEB, Contestant, Stage, require, rules_text
from tests.net.objects import endpoint, endpoint_slice, service
from tests.net.world import World, kernel_state, run

pytestmark = pytest.mark.ring3

SILENCE_S = 0.6 * SLOWNESS  # how long nothing comes where packets are dropped


@pytest.fixture
def world() -> Iterator[World]:
    with World.entered() as world:
        yield world


@pytest.fixture(params=CONTESTANTS, ids=str)
def contestant(request: pytest.FixtureRequest) -> Contestant:
    require(request.param)
    return request.param


@pytest.fixture
async def stage(contestant: Contestant, world: World, tmp_path: Path) -> AsyncIterator[Stage]:
    stage = Stage(world, tmp_path, contestant)
    await stage.start()
    try:
        yield stage
    finally:
        await stage.stop()


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
        assert time.monotonic() < began + within_s * SLOWNESS, f"not so within {within_s} s"
        await asyncio.sleep(0.05)
    return time.monotonic() - began


async def test_a_cluster_ip_leads_to_every_endpoint_alike(stage: Stage) -> None:
    a, b, c = [await stage.backend_pod(name) for name in "abc"]
    await stage.proxier.sync({WEB: stage.web(a, b, c)})
    answers = Counter([await stage.ask(stage.at.vip, 80) for _ in range(90)])
    assert set(answers) == {"a", "b", "c"}
    assert min(answers.values()) > 12, "30 each in the mean"


async def test_the_client_pod_keeps_its_address_and_the_host_is_served_too(stage: Stage) -> None:
    a = await stage.backend_pod("a")
    await stage.proxier.sync({WEB: stage.web(a)})
    if "source address" not in stage.contestant.lacks:
        assert await stage.peer(stage.at.vip, 80) == stage.client_ip
    assert await stage.ask(stage.at.vip, 80, path="") == "a"


async def test_a_pod_reaches_itself_through_its_service(stage: Stage) -> None:
    a = await stage.backend_pod("a")
    await stage.proxier.sync({WEB: stage.web(a)})
    assert await stage.ask(stage.at.vip, 80, path=stage.pods["a"]) == "a"


async def test_it_does_not_depend_on_br_netfilter(stage: Stage) -> None:
    for tool in ("iptables", "ip6tables"):
        Path(f"/proc/sys/net/bridge/bridge-nf-call-{tool}").write_text("0")
    a = await stage.backend_pod("a")
    await stage.proxier.sync({WEB: stage.web(a)})
    assert await stage.ask(stage.at.vip, 80) == "a"
    assert await stage.ask(stage.at.vip, 80, path=stage.pods["a"]) == "a"


async def test_the_host_without_a_default_route_reaches_services(stage: Stage) -> None:
    a = await stage.backend_pod("a")
    await stage.proxier.sync({WEB: stage.web(a)})
    run("ip", f"-{stage.family}", "route", "del", "default")
    assert await stage.ask(stage.at.vip, 80, path="") == "a"


async def test_a_stranger_is_answered_through_the_node(stage: Stage) -> None:
    a = await stage.backend_pod("a")
    await stage.proxier.sync({WEB: stage.web(a)})
    stage.lead_outside_here(stage.at.vip)
    assert await stage.peer(stage.at.vip, 80, path=stage.world.outside) == stage.at.bridge


async def test_udp_is_served(stage: Stage) -> None:
    a = await stage.backend_pod("a")
    await stage.proxier.sync({DNS: stage.dns(a)})
    with stage.udp_client(stage.client) as client:
        assert await stage.world.ask_udp(client, stage.at.vip, 53) == "a"


async def test_sctp_is_served(stage: Stage) -> None:
    if not stage.world.has_sctp():
        pytest.skip("this kernel has no SCTP")
    path, ip = await stage.pod("a")
    name = ServicePortName("default", "call", "", "SCTP")
    port = ServicePort(
        "SCTP", stage.at.vip, 3868, node_port=30868, cluster_endpoints=(Endpoint(ip, 3868),), has_endpoints=True
    )
    async with await stage.world.serve(path, 3868, "a", address=stage.at.everywhere, protocol=socket.IPPROTO_SCTP):
        await stage.proxier.sync({name: port})
        ask = stage.world.ask
        assert (await ask(stage.client, stage.at.vip, 3868, protocol=socket.IPPROTO_SCTP))[0] == "a"
        assert (await ask(stage.world.outside, stage.at.host, 30868, protocol=socket.IPPROTO_SCTP))[0] == "a"


async def test_ports_of_one_address_are_told_apart(stage: Stage) -> None:
    a, b = await stage.backend_pod("a"), await stage.backend_pod("b")
    other = ServicePortName("default", "web", "other", "TCP")
    second = ServicePort("TCP", stage.at.vip, 8443, cluster_endpoints=(b,), has_endpoints=True)
    await stage.proxier.sync({WEB: stage.web(a), other: second, DNS: stage.dns(b)})
    assert await stage.ask(stage.at.vip, 80) == "a"
    assert await stage.ask(stage.at.vip, 8443) == "b"
    await stage.proxier.sync({WEB: stage.web(a)})
    assert await refused(stage.ask(stage.at.vip, 8443, timeout_s=SILENCE_S))
    assert await stage.ask(stage.at.vip, 80) == "a"


async def test_a_service_without_endpoints_refuses_and_an_unknown_address_too(stage: Stage) -> None:
    await stage.proxier.sync({WEB: stage.web()})
    assert await refused(stage.ask(stage.at.vip, 80))
    assert await refused(stage.ask(stage.at.vip, 80, path=""))
    assert await refused(stage.ask(stage.at.unknown_vip, 80))


async def test_a_program_of_the_host_is_refused_by_udp_as_where_nobody_listens(stage: Stage) -> None:
    await stage.proxier.sync({DNS: stage.dns(node_port=30053)})
    with stage.udp_client("") as client:
        client.connect((stage.at.host, 30053))
        client.send(b"?")
        async with asyncio.timeout(2):
            with pytest.raises(ConnectionRefusedError):
                await asyncio.get_running_loop().sock_recv(client, 100)


async def test_changes_are_followed(stage: Stage) -> None:
    a, b = await stage.backend_pod("a"), await stage.backend_pod("b")
    await stage.proxier.sync({WEB: stage.web(a)})
    await stage.proxier.sync({WEB: stage.web(b)})
    assert {await stage.ask(stage.at.vip, 80) for _ in range(5)} == {"b"}
    await stage.proxier.sync({WEB: stage.web()})
    assert await refused(stage.ask(stage.at.vip, 80))
    await stage.proxier.sync({WEB: stage.web(a)})
    assert await stage.ask(stage.at.vip, 80) == "a"
    await stage.proxier.sync({})
    assert await refused(stage.ask(stage.at.vip, 80))


async def test_terminating_endpoints_serve_while_nobody_else_does(stage: Stage) -> None:
    a, b = await stage.backend_pod("a"), await stage.backend_pod("b")
    draining = {"ready": False, "serving": True, "terminating": True}

    async def sync(*endpoints: Object) -> None:
        web = service("web", clusterIP=stage.at.vip)
        found = endpoint_slice("web", *endpoints, family=f"IPv{stage.family}")
        await stage.proxier.sync(service_map([web], [found], Place("n1", family=f"IPv{stage.family}")))

    await sync(endpoint(a.ip, **draining), endpoint(b.ip, ready=False))
    assert {await stage.ask(stage.at.vip, 80) for _ in range(4)} == {"a"}
    await sync(endpoint(a.ip, **draining), endpoint(b.ip))
    assert {await stage.ask(stage.at.vip, 80) for _ in range(4)} == {"b"}
    await sync(endpoint(a.ip, ready=False, serving=False, terminating=True))
    assert await refused(stage.ask(stage.at.vip, 80))


async def test_an_established_connection_goes_on_when_rules_change(stage: Stage) -> None:
    path, ip = await stage.pod("echo")
    b = await stage.backend_pod("b")

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    with stage.world.inside(path):
        listening = socket.create_server((stage.at.everywhere, 8080), family=stage.inet)
    async with await asyncio.start_server(echo, sock=listening):
        await stage.proxier.sync({WEB: stage.web(Endpoint(ip, 8080))})
        with stage.world.inside(stage.client):
            client = socket.socket(stage.inet, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        loop = asyncio.get_running_loop()
        with client:
            await loop.sock_connect(client, (stage.at.vip, 80))
            for change in (stage.web(b), stage.web(), stage.web(b, Endpoint(ip, 8080))):
                await stage.proxier.sync({WEB: change})
                await loop.sock_sendall(client, b"still there")
                async with asyncio.timeout(2):
                    assert await loop.sock_recv(client, 100) == b"still there"


async def test_a_node_port_answers_on_every_address_of_the_node(stage: Stage) -> None:
    a = await stage.backend_pod("a")
    await stage.proxier.sync({WEB: stage.web(a, node_port=30080)})
    assert await stage.ask(stage.at.host, 30080, path=stage.world.outside) == "a"
    assert await stage.ask(stage.at.host, 30080, path="") == "a"
    if stage.family == 4:  # an IPv6 packet from ::1 may leave lo for nobody
        assert await stage.ask("127.0.0.1", 30080, path="") == "a"
    assert await stage.ask(stage.at.host, 30080) == "a", "from a pod"
    assert await stage.ask(stage.at.host, 30080, path=stage.pods["a"]) == "a", "from the endpoint itself"
    assert await stage.ask(stage.at.vip, 80) == "a"
    await stage.proxier.sync({WEB: stage.web(node_port=30080)})
    assert await refused(stage.ask(stage.at.host, 30080, path=stage.world.outside))


async def test_a_node_port_answers_on_an_address_that_the_host_gets_later(stage: Stage) -> None:
    a = await stage.backend_pod("a")
    await stage.proxier.sync({WEB: stage.web(a, node_port=30080)})
    later = stage.at.host + "2"
    run("ip", "addr", "add", f"{later}/{24 if stage.family == 4 else 64}", "dev", "up0", "nodad")

    async def served() -> bool:
        return await stage.answers(later, 30080, path=stage.world.outside)

    await eventually(served, within_s=5)


async def test_node_ports_are_only_at_the_addresses_that_were_chosen(stage: Stage) -> None:
    a = await stage.backend_pod("a")
    other = stage.at.host + "2"
    run("ip", "addr", "add", f"{other}/{24 if stage.family == 4 else 64}", "dev", "up0", "nodad")
    await stage.instead(node_port_cidrs=[stage.at.whole(stage.at.host)])
    await stage.proxier.sync({WEB: stage.web(a, node_port=30080)})
    assert await stage.ask(stage.at.host, 30080, path=stage.world.outside) == "a"
    assert await stage.ask(stage.at.host, 30080) == "a", "from a pod"
    assert await refused(stage.ask(other, 30080, path=stage.world.outside))
    if stage.family == 4:
        assert await refused(stage.ask("127.0.0.1", 30080, path=""))
    await stage.proxier.sync({WEB: stage.web(node_port=30080)})
    assert await refused(stage.ask(stage.at.host, 30080, path=stage.world.outside))


async def test_node_port_over_udp(stage: Stage) -> None:
    a = await stage.backend_pod("a")
    await stage.proxier.sync({DNS: stage.dns(a, node_port=30053)})
    with stage.udp_client(stage.world.outside) as client:
        assert await stage.world.ask_udp(client, stage.at.host, 30053) == "a"


async def test_external_policy_cluster_hides_the_client_and_local_shows_it(stage: Stage) -> None:
    stage.needs("source address")
    a = await stage.backend_pod("a")
    await stage.proxier.sync({WEB: stage.web(a, node_port=30080)})
    assert await stage.peer(stage.at.host, 30080, path=stage.world.outside) == stage.at.bridge
    local = stage.web(a, node_port=30080, external_local=True, local_endpoints=(a,))
    await stage.proxier.sync({WEB: local})
    assert await stage.peer(stage.at.host, 30080, path=stage.world.outside) == stage.at.outside


async def test_external_policy_local_without_local_endpoints_drops_outsiders_only(stage: Stage) -> None:
    a = await stage.backend_pod("a")
    await stage.proxier.sync({WEB: stage.web(a, node_port=30080, external_local=True)})
    assert not await stage.answers(stage.at.host, 30080, path=stage.world.outside)
    if "drop" not in stage.contestant.lacks:
        assert not await refused(stage.ask(stage.at.host, 30080, path=stage.world.outside, timeout_s=SILENCE_S))
    assert await stage.ask(stage.at.host, 30080) == "a", "a pod is not outside"
    assert await stage.ask(stage.at.host, 30080, path="") == "a", "nor is the node"


async def test_internal_policy_local(stage: Stage) -> None:
    a = await stage.backend_pod("a")
    await stage.proxier.sync({WEB: stage.web(internal_local=True, local_endpoints=(a,), has_endpoints=True)})
    assert await stage.ask(stage.at.vip, 80) == "a"
    await stage.proxier.sync({WEB: stage.web(internal_local=True, has_endpoints=True)})
    assert not await stage.answers(stage.at.vip, 80)
    if "drop" not in stage.contestant.lacks:
        assert not await refused(stage.ask(stage.at.vip, 80, timeout_s=SILENCE_S)), "dropped: elsewhere it is served"


async def test_external_and_load_balancer_addresses(stage: Stage) -> None:
    a = await stage.backend_pod("a")
    both = (stage.at.external, stage.at.balancer)
    addresses = {"external_ips": both[:1], "load_balancer_ips": both[1:]}
    stage.lead_outside_here(*both)
    await stage.proxier.sync({WEB: stage.web(a, **addresses)})
    for ip in both:
        assert await stage.ask(ip, 80, path=stage.world.outside) == "a"
        assert await stage.ask(ip, 80) == "a"
        assert await stage.ask(ip, 80, path="") == "a"
    await stage.proxier.sync({WEB: stage.web(**addresses)})
    for ip in both:
        run("ip", "addr", "replace", stage.at.whole(ip), "dev", "lo")
        assert await refused(stage.ask(ip, 80, path=stage.world.outside))


async def test_a_load_balancers_policy_local_shows_the_client(stage: Stage) -> None:
    stage.needs("source address")
    a = await stage.backend_pod("a")
    stage.lead_outside_here(stage.at.balancer)
    fields = {"load_balancer_ips": (stage.at.balancer,), "external_local": True}
    await stage.proxier.sync({WEB: stage.web(a, local_endpoints=(a,), **fields)})
    assert await stage.peer(stage.at.balancer, 80, path=stage.world.outside) == stage.at.outside
    await stage.proxier.sync({WEB: stage.web(a, **fields)})
    assert not await stage.answers(stage.at.balancer, 80, path=stage.world.outside)
    assert await stage.ask(stage.at.balancer, 80) == "a", "a pod is not outside"


async def test_source_ranges_shut_the_load_balancer_to_others(stage: Stage) -> None:
    a = await stage.backend_pod("a")
    stage.lead_outside_here(stage.at.balancer)

    async def open_to(cidr: str) -> None:
        port = stage.web(a, load_balancer_ips=(stage.at.balancer,), source_ranges=(cidr,))
        await stage.proxier.sync({WEB: port})

    await open_to(stage.at.whole(stage.at.outside))
    assert await stage.ask(stage.at.balancer, 80, path=stage.world.outside) == "a"
    await open_to(stage.at.foreign)
    assert not await stage.answers(stage.at.balancer, 80, path=stage.world.outside)
    assert await stage.ask(stage.at.vip, 80) == "a", "the cluster IP is open to pods"


async def test_session_affinity_keeps_a_client_at_its_endpoint(stage: Stage) -> None:
    endpoints = tuple([await stage.backend_pod(name) for name in "abc"])
    sticky = stage.web(*endpoints, affinity_s=10800)
    await stage.proxier.sync({WEB: sticky})
    first = await stage.ask(stage.at.vip, 80)
    assert {await stage.ask(stage.at.vip, 80) for _ in range(12)} == {first}
    other = ServicePortName("default", "other", "", "TCP")
    elsewhere = ServicePort("TCP", stage.at.vip, 81)
    await stage.proxier.sync({WEB: stage.web(*endpoints, affinity_s=10800, node_port=30080), other: elsewhere})
    assert {await stage.ask(stage.at.vip, 80) for _ in range(6)} == {first}, "a change elsewhere is not felt"
    by_node_port = {await stage.ask(stage.at.host, 30080) for _ in range(6)}
    assert len(by_node_port) == 1
    if "affinity across addresses" not in stage.contestant.lacks:
        assert by_node_port == {first}, "another way in is the same Service"


async def test_session_affinity_ends_after_its_time(stage: Stage) -> None:
    stage.needs("affinity ends on time")
    endpoints = tuple([await stage.backend_pod(name) for name in "abc"])
    await stage.proxier.sync({WEB: stage.web(*endpoints, affinity_s=1)})
    seen = set()
    deadline = time.monotonic() + 20
    while len(seen) < 2 and time.monotonic() < deadline:
        seen.add(await stage.ask(stage.at.vip, 80))
        await asyncio.sleep(1.1)
    assert len(seen) > 1


async def test_affinity_leaves_an_endpoint_that_is_gone(stage: Stage) -> None:
    a, b = await stage.backend_pod("a"), await stage.backend_pod("b")
    await stage.proxier.sync({WEB: stage.web(a, affinity_s=10800)})
    assert await stage.ask(stage.at.vip, 80) == "a"
    await stage.proxier.sync({WEB: stage.web(b, affinity_s=10800)})
    assert {await stage.ask(stage.at.vip, 80) for _ in range(4)} == {"b"}


async def test_a_udp_flow_leaves_an_endpoint_that_is_gone(stage: Stage) -> None:
    a, b = await stage.backend_pod("a"), await stage.backend_pod("b")
    await stage.proxier.sync({DNS: stage.dns(a, node_port=30053)})
    with stage.udp_client(stage.client) as pod, stage.udp_client(stage.world.outside) as outside:
        assert await stage.world.ask_udp(pod, stage.at.vip, 53) == "a"
        assert await stage.world.ask_udp(outside, stage.at.host, 30053) == "a"
        await stage.proxier.sync({DNS: stage.dns(b, node_port=30053)})
        assert await stage.world.ask_udp(pod, stage.at.vip, 53) == "b", "from the same port of the client"
        assert await stage.world.ask_udp(outside, stage.at.host, 30053) == "b"


async def test_a_udp_flow_that_began_when_nobody_served_is_led_anew(stage: Stage) -> None:
    a = await stage.backend_pod("a")
    await stage.proxier.sync({DNS: stage.dns()})
    with stage.udp_client(stage.client) as pod:
        with pytest.raises((OSError, TimeoutError)):
            await stage.world.ask_udp(pod, stage.at.vip, 53, timeout_s=SILENCE_S)
        await stage.proxier.sync({DNS: stage.dns(a)})
        assert await stage.world.ask_udp(pod, stage.at.vip, 53) == "a"


async def test_what_someone_else_undoes_is_mended_within_five_seconds(stage: Stage) -> None:
    a = await stage.backend_pod("a")
    await stage.proxier.sync({WEB: stage.web(a, node_port=30080)})

    async def served() -> bool:
        return await stage.answers(stage.at.vip, 80) and await stage.answers(
            stage.at.host, 30080, path=stage.world.outside
        )

    assert await served()
    for harm in stage.contestant.harms:
        harm()
        await eventually(served, within_s=5)


async def test_a_new_process_takes_over_without_a_gap_and_removes_what_is_no_longer_wanted(stage: Stage) -> None:
    stage.needs("takeover")
    a = await stage.backend_pod("a")
    gone = ServicePortName("default", "gone", "", "TCP")
    old = ServicePort("TCP", stage.at.unknown_vip, 80, node_port=30081, cluster_endpoints=(a,), has_endpoints=True)
    await stage.proxier.sync({WEB: stage.web(a), gone: old})
    assert await stage.answers(stage.at.unknown_vip, 80)
    await stage.let_go()
    stage.build()
    for step in (
        *(firewall.start for firewall in stage.firewalls.values()),
        stage.network.start,
        lambda: stage.network.restore({"client", "a"}),
        stage.proxier.start,
        lambda: stage.proxier.sync({WEB: stage.web(a)}),
    ):
        await step()
        assert await stage.ask(stage.at.vip, 80) == "a", "served on at each step"
        assert await stage.ask(stage.at.vip, 80, path="") == "a"
    assert await refused(stage.ask(stage.at.unknown_vip, 80))
    assert await refused(stage.ask(stage.at.host, 30081, path=stage.world.outside))


async def test_cleanup_leaves_no_trace(contestant: Contestant, world: World, tmp_path: Path) -> None:
    stage = Stage(world, tmp_path, contestant)
    before = kernel_state()
    await stage.start()
    a = await stage.backend_pod("a")
    addresses = {"external_ips": (stage.at.external,), "load_balancer_ips": (stage.at.balancer,)}
    web = stage.web(a, node_port=30080, affinity_s=60, source_ranges=(stage.at.foreign,), **addresses)
    await stage.proxier.sync({WEB: web, DNS: stage.dns(a, node_port=30053, external_local=True)})
    await stage.stop()
    cleaner = Firewall(NAMES, family=contestant.family)
    await modes.make(contestant.mode, cleaner, stage.rules).cleanup()
    assert stage.at.vip not in rules_text(), "all of its own"
    assert "KONE-FORWARD" in rules_text(), "only its own"
    for family in (4, 6):
        await Firewall(NAMES, family=family).cleanup()
    await remove_links(NAMES)
    assert kernel_state() == before
