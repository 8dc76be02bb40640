"""The load balancer: which addresses a Service gets, what it is told, and that all is taken back."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any

import pytest

from kone.aio.clock import FakeClock, settle
from kone.apimachinery.kinds import EVENTS, SERVICES
from kone.apimachinery.objects import Object, replace_in
from kone.client.events import EventRecorder
from kone.net.load_balancer import (
    COMPONENT,
    FINALIZER,
    BalancerConfig,
    LoadBalancerController,
    NoAddress,
    PortId,
    choose,
    is_mine,
)
from kone.net.uplink_addresses import UplinkAddresses, advertisement, gratuitous_arp, is_listened_on, remove_given
from tests.fakes import FakeClient
from tests.net.objects import service
from tests.net.world import HOST_IP, World, run

NODE = BalancerConfig(["192.0.2.2", "2001:db8::2"], reserved={("TCP", 6443)})
POOL = BalancerConfig(["192.0.2.2"], ["192.0.2.240/30"])


def balanced(name: str, *ips: str, **more: Any) -> Object:
    """A Service of type LoadBalancer that has these addresses."""
    status = {"loadBalancer": {"ingress": [{"ip": ip, "ipMode": "VIP"} for ip in ips]}} if ips else {}
    return service(name, type="LoadBalancer", status=status, **more)


def given(wanted: Object, config: BalancerConfig, *others: Object, listening: tuple[PortId, ...] = ()) -> list[str]:
    def having(ip: str) -> list[Object]:
        return [o for o in others if ip in [e["ip"] for e in o["status"]["loadBalancer"]["ingress"]]]

    return choose(wanted, having, config, lambda ip, port: port in listening)


@pytest.mark.parametrize(
    ("wanted", "config", "others", "expected"),
    [
        pytest.param(balanced("a"), NODE, (), ["192.0.2.2"], id="the node's own"),
        pytest.param(
            balanced("a", ipFamilies=["IPv6", "IPv4"]), NODE, (), ["2001:db8::2", "192.0.2.2"], id="of each family"
        ),
        pytest.param(balanced("a"), NODE, (balanced("b", "192.0.2.2", ports=[("h", 81)]),), ["192.0.2.2"], id="shared"),
        pytest.param(balanced("a"), POOL, (), ["192.0.2.240"], id="the pool's first"),
        pytest.param(balanced("a"), POOL, (balanced("b", "192.0.2.240"),), ["192.0.2.241"], id="the next free one"),
        pytest.param(balanced("a", "192.0.2.242"), POOL, (), ["192.0.2.242"], id="the one it has"),
        pytest.param(balanced("a", loadBalancerIP="192.0.2.243"), POOL, (), ["192.0.2.243"], id="the one it asks for"),
        pytest.param(balanced("a", loadBalancerIP="203.0.113.1"), NODE, (), ["192.0.2.2"], id="no pool: not asked"),
        pytest.param(
            balanced("a", ipFamilies=["IPv4", "IPv6"], ipFamilyPolicy="PreferDualStack"),
            POOL,
            (),
            ["192.0.2.240"],
            id="the second family only where there is one",
        ),
    ],
)
def test_which_addresses(
    wanted: Object, config: BalancerConfig, others: tuple[Object, ...], expected: list[str]
) -> None:
    assert given(wanted, config, *others) == expected


@pytest.mark.parametrize(
    ("wanted", "config", "others", "text"),
    [
        (balanced("a"), NODE, (balanced("b", "192.0.2.2"),), "port 80/TCP of 192.0.2.2 is in use by Service default/b"),
        (balanced("a", ports=[("x", 6443)]), NODE, (), "port 6443/TCP of 192.0.2.2 is in use by kone itself"),
        (balanced("a", ports=[("x", 22)]), NODE, (), "port 22/TCP of 192.0.2.2 is in use by a program of this host"),
        (balanced("a", loadBalancerIP="203.0.113.1"), POOL, (), "loadBalancerIP 203.0.113.1 is not in the pool"),
        (
            balanced("a"),
            POOL,
            tuple(balanced(f"b{n}", f"192.0.2.{n}") for n in range(240, 244)),
            "all IPv4 addresses of the pool 192.0.2.240/30 are taken",
        ),
        (balanced("a", ipFamilies=["IPv6"]), POOL, (), "there is no IPv6 address to give"),
    ],
    ids=["a Service's port", "kone's port", "a program's port", "not in the pool", "pool used up", "no such family"],
)
def test_what_cannot_be_had(wanted: Object, config: BalancerConfig, others: tuple[Object, ...], text: str) -> None:
    with pytest.raises(NoAddress, match=text):
        given(wanted, config, *others, listening=(("TCP", 22),))


def test_only_kones_class_and_none() -> None:
    assert is_mine(balanced("a"))
    assert is_mine(balanced("a", loadBalancerClass="kone"))
    assert not is_mine(balanced("a", loadBalancerClass="example.com/other"))
    assert not is_mine(service("a"))


class Held:
    """A Holder that only remembers."""

    def __init__(self) -> None:
        self.addresses: set[str] = set()

    async def hold(self, addresses: Collection[str]) -> None:
        self.addresses = set(addresses)


class Setting:
    def __init__(self, config: BalancerConfig) -> None:
        self.clock = FakeClock()
        self.client = FakeClient(self.clock)
        self.held = Held()
        self.recorder = EventRecorder(self.client, COMPONENT, clock=self.clock)
        self.controller = LoadBalancerController(
            self.client, self.recorder, self.clock, config, self.held, lambda ip, port: False
        )

    def look(self, name: str) -> Object:
        return next(s for s in self.client.of(SERVICES) if s["metadata"]["name"] == name)

    def addresses(self, name: str) -> list[str]:
        return [entry["ip"] for entry in self.look(name)["status"].get("loadBalancer", {}).get("ingress") or ()]

    async def events(self) -> list[str]:
        await self.clock.advance(0.1)
        return [event["reason"] for event in self.client.of(EVENTS)]


@pytest.fixture
async def setting(request: pytest.FixtureRequest) -> AsyncIterator[Setting]:
    setting = Setting(getattr(request, "param", POOL))
    setting.client.put(SERVICES, balanced("old", "192.0.2.241"))
    await setting.controller.start()
    await settle()
    yield setting
    await setting.controller.stop()
    await setting.recorder.stop()


async def test_a_service_is_given_an_address_and_told(setting: Setting) -> None:
    setting.client.put(SERVICES, balanced("web"))
    await settle()
    assert setting.look("web")["status"]["loadBalancer"] == {"ingress": [{"ip": "192.0.2.240", "ipMode": "VIP"}]}
    assert FINALIZER in setting.look("web")["metadata"]["finalizers"]
    assert setting.held.addresses == {"192.0.2.240", "192.0.2.241"}
    assert (await setting.events())[-2:] == ["EnsuringLoadBalancer", "EnsuredLoadBalancer"]


async def test_a_deleted_service_gives_its_address_back(setting: Setting) -> None:
    setting.client.put(SERVICES, balanced("web"))
    await settle()
    await setting.client.delete(SERVICES, "web", namespace="default")
    await settle()
    assert "web" not in [s["metadata"]["name"] for s in setting.client.of(SERVICES)]
    assert setting.held.addresses == {"192.0.2.241"}
    assert (await setting.events())[-2:] == ["DeletingLoadBalancer", "DeletedLoadBalancer"]


async def test_another_type_takes_address_status_and_finalizer_away(setting: Setting) -> None:
    old = setting.look("old")
    await setting.client.update(SERVICES, replace_in(old, ("spec", "type"), "ClusterIP"))
    await settle()
    assert setting.addresses("old") == []
    assert not setting.look("old")["metadata"].get("finalizers")
    assert setting.held.addresses == set()


@pytest.mark.parametrize("setting", [BalancerConfig(["192.0.2.241"])], indirect=True)
async def test_a_port_in_use_is_an_event_and_given_when_it_is_free(setting: Setting) -> None:
    setting.client.put(SERVICES, balanced("web"))
    await settle()
    assert setting.addresses("web") == []
    assert "SyncLoadBalancerFailed" in await setting.events()
    await setting.client.delete(SERVICES, "old", namespace="default")
    await settle()
    assert setting.addresses("web") == ["192.0.2.241"]


@pytest.mark.parametrize("setting", [NODE], indirect=True)
async def test_services_follow_the_hosts_address(setting: Setting) -> None:
    setting.client.put(SERVICES, balanced("web", ports=[("h", 81)]))
    await settle()
    assert setting.addresses("web") == ["192.0.2.2"]
    setting.controller.move(["192.0.2.77"])
    await settle()
    assert setting.addresses("web") == setting.addresses("old") == ["192.0.2.77"]


async def test_a_class_of_somebody_else_is_left_alone(setting: Setting) -> None:
    other = balanced("other", "203.0.113.9", loadBalancerClass="example.com/other")
    setting.client.put(SERVICES, replace_in(other, ("metadata", "finalizers"), [FINALIZER]))
    await settle()
    assert setting.addresses("other") == ["203.0.113.9"]
    assert setting.look("other")["metadata"]["finalizers"] == [FINALIZER]


def test_the_announcement_is_an_arp_request_for_itself() -> None:
    frame = gratuitous_arp(b"\x02\0\0\0\0\1", "192.0.2.240")
    assert frame[:14] == b"\xff" * 6 + b"\x02\0\0\0\0\1" + b"\x08\x06"
    assert frame[28:32] == frame[38:42] == bytes([192, 0, 2, 240])
    assert len(frame) == 42


def test_the_advertisement_tells_all_nodes_whatever_they_knew() -> None:
    frame = advertisement(b"\x02\0\0\0\0\1", "2001:db8::40")
    assert frame[:14] == b"\x33\x33\0\0\0\1" + b"\x02\0\0\0\0\1" + b"\x86\xdd"
    header, body = frame[14:54], frame[54:]
    assert (header[6], header[7]) == (socket.IPPROTO_ICMPV6, 255)  # the hop limit says that it is the link's own
    assert (body[0], body[4]) == (136, 0x20)
    assert body[8:24] == header[8:24] == socket.inet_pton(socket.AF_INET6, "2001:db8::40")
    assert body[24:] == b"\x02\x01\x02\0\0\0\0\1"
    summed = header[8:] + len(body).to_bytes(4, "big") + bytes((0, 0, 0, socket.IPPROTO_ICMPV6)) + body
    total = sum(int.from_bytes(summed[i : i + 2], "big") for i in range(0, len(summed), 2))
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF


def test_a_listening_program_is_seen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert is_listened_on("127.0.0.1", ("TCP", port))
    assert not is_listened_on("127.0.0.1", ("TCP", port))


@pytest.mark.ring3
@pytest.mark.parametrize(
    ("one", "other", "length", "everywhere"),
    [("192.0.2.240", "192.0.2.241", 32, "0.0.0.0"), ("2001:db8::40", "2001:db8::41", 128, "::")],
    ids=["IPv4", "IPv6"],
)
async def test_the_uplink_holds_the_pools_addresses_and_gives_them_back(
    world: World, tmp_path: Path, one: str, other: str, length: int, everywhere: str
) -> None:
    world.add_ipv6()
    uplink = UplinkAddresses(tmp_path, HOST_IP)
    await uplink.start()
    before = run("ip", "-br", "addr")
    await uplink.hold({one, other})
    async with await world.serve("", 8080, "host", address=everywhere):
        assert (await world.ask(world.outside, one, 8080))[0] == "host"
        run("ip", "addr", "del", f"{one}/{length}", "dev", "up0")
        async with asyncio.timeout(5):
            while f"{one}/" not in run("ip", "-br", "addr"):  # noqa: ASYNC110 - the kernel tells nobody here
                await asyncio.sleep(0.05)
        assert (await world.ask(world.outside, one, 8080))[0] == "host"
    await uplink.hold({other})
    assert f"{one}/" not in run("ip", "-br", "addr")
    await uplink.stop()
    assert remove_given(tmp_path) == [other], "by a later process"
    assert run("ip", "-br", "addr") == before
