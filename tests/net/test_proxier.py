"""The proxy loop with a Proxier that only remembers: what is asked of it, when, and what happens when it fails."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from kone.aio.clock import FakeClock, settle
from kone.apimachinery.kinds import ENDPOINTSLICES, NODES, SERVICES
from kone.apimachinery.objects import replace_in
from kone.net.conntrack import Address, Flow, is_stale
from kone.net.proxier import Desired, ProxySyncError, ServiceProxy
from kone.net.service_map import ServicePort, ServicePortName
from tests.fakes import FakeClient, make_node
from tests.net.objects import endpoint, endpoint_slice, service


class Remembering:
    """A Proxier whose kernel is a dict."""

    def __init__(self) -> None:
        self.served: dict[ServicePortName, ServicePort] = {}
        self.syncs = 0
        self.fails = 0

    async def start(self) -> None: ...

    async def sync(self, desired: Desired) -> None:
        self.syncs += 1
        if self.fails:
            self.fails -= 1
            raise ProxySyncError("no such match")
        self.served = dict(desired)

    async def stop(self) -> None: ...

    async def cleanup(self) -> None:
        self.served.clear()

    @property
    def endpoints(self) -> dict[str, list[str]]:
        return {str(n): [e.ip for e in p.cluster_endpoints] for n, p in self.served.items()}


class Setting:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.client = FakeClient(self.clock)
        self.proxier = Remembering()
        self.proxy = ServiceProxy(self.client, {"IPv4": self.proxier}, "n1", self.clock)


@pytest.fixture
async def setting() -> AsyncIterator[Setting]:
    setting = Setting()
    setting.client.put(SERVICES, service("web"))
    setting.client.put(ENDPOINTSLICES, endpoint_slice("web", endpoint("10.244.0.5")))
    await setting.proxy.start()
    await setting.proxy.wait_synced()
    yield setting
    await setting.proxy.stop()


async def test_what_was_there_at_start_is_served_in_one_go(setting: Setting) -> None:
    assert setting.proxier.endpoints == {"default/web:http": ["10.244.0.5"]}
    assert setting.proxier.syncs == 1


async def test_a_change_after_a_pause_is_applied_at_once(setting: Setting) -> None:
    await setting.clock.advance(1)
    setting.client.put(ENDPOINTSLICES, endpoint_slice("web", endpoint("10.244.0.6"), name="web-2"))
    await settle()
    assert setting.proxier.endpoints == {"default/web:http": ["10.244.0.5", "10.244.0.6"]}


async def test_changes_that_follow_within_50_ms_are_gathered(setting: Setting) -> None:
    await setting.clock.advance(1)
    for n in range(20):
        setting.client.put(SERVICES, service(f"s{n}", clusterIP=f"10.96.1.{n}"))
        await settle()
    assert setting.proxier.syncs == 2, "the first at once"
    await setting.clock.advance(0.05)
    assert setting.proxier.syncs == 3
    assert len(setting.proxier.served) == 21


async def test_unchanged_ports_stay_the_same_objects(setting: Setting) -> None:
    before = dict(setting.proxier.served)
    await setting.clock.advance(1)
    setting.client.put(SERVICES, service("other", clusterIP="10.96.0.30"))
    web = await setting.client.get(SERVICES, "web", "default")
    await setting.client.update(SERVICES, replace_in(web, ("metadata", "annotations"), {"a": "b"}))
    await setting.clock.advance(1)
    for name, port in before.items():
        assert setting.proxier.served[name] is port


async def test_a_deleted_service_and_a_renamed_port_go(setting: Setting) -> None:
    web = await setting.client.get(SERVICES, "web", "default")
    ports = [{"name": "web", "port": 80, "protocol": "TCP"}]
    await setting.client.update(SERVICES, replace_in(web, ("spec", "ports"), ports))
    await setting.clock.advance(1)
    assert list(setting.proxier.endpoints) == ["default/web:web"]
    await setting.client.delete(SERVICES, "web", namespace="default")
    await setting.clock.advance(1)
    assert not setting.proxier.served


async def test_endpoints_before_their_service_are_found_when_it_comes(setting: Setting) -> None:
    setting.client.put(ENDPOINTSLICES, endpoint_slice("late", endpoint("10.244.0.9")))
    await setting.clock.advance(1)
    setting.client.put(SERVICES, service("late", clusterIP="10.96.0.31"))
    await setting.clock.advance(1)
    assert setting.proxier.endpoints["default/late:http"] == ["10.244.0.9"]


async def test_what_the_kernel_refused_is_tried_again_after_a_while(setting: Setting) -> None:
    await setting.clock.advance(1)
    setting.proxier.fails = 2
    setting.client.put(SERVICES, service("late", clusterIP="10.96.0.31"))
    await settle()
    assert "default/late:http" not in setting.proxier.endpoints
    await setting.clock.advance(0.5)
    assert "default/late:http" not in setting.proxier.endpoints
    await setting.clock.advance(1.0)
    assert "default/late:http" in setting.proxier.endpoints
    assert setting.proxy.errors == 2


async def test_the_nodes_zone_is_followed(setting: Setting) -> None:
    entries = [
        endpoint(ip, hints={"forZones": [{"name": zone}]}) for ip, zone in (("10.244.0.5", "a"), ("10.244.1.5", "b"))
    ]
    setting.client.put(SERVICES, service("near", clusterIP="10.96.0.32"))
    setting.client.put(ENDPOINTSLICES, endpoint_slice("near", *entries))
    await setting.clock.advance(1)
    assert setting.proxier.endpoints["default/near:http"] == ["10.244.0.5", "10.244.1.5"]
    node = make_node("n1")
    setting.client.put(NODES, replace_in(node, ("metadata", "labels"), {"topology.kubernetes.io/zone": "b"}))
    await setting.clock.advance(1)
    assert setting.proxier.endpoints["default/near:http"] == ["10.244.1.5"]


VIP, NODE = Address("10.96.0.10", 53), Address("192.0.2.2", 30053)
OLD, NEW = Address("10.244.0.5", 53), Address("10.244.0.6", 53)
FRONTENDS = {VIP: [NEW], Address("", 30053): [NEW], NODE: [NEW]}


@pytest.mark.parametrize(
    ("sent_to", "answered_by", "stale"),
    [
        (VIP, OLD, True),
        (VIP, NEW, False),
        (VIP, VIP, True),
        (NODE, OLD, True),
        (NODE, NODE, True),
        (Address("192.0.2.3", 30053), OLD, True),
        (Address("198.51.100.1", 30053), Address("198.51.100.1", 30053), False),
        (Address("10.96.0.10", 54), OLD, False),
    ],
    ids=[
        "to an endpoint that is gone",
        "to one of now",
        "begun when there was none",
        "by node port",
        "by node port, begun when there was none",
        "by another address of the node",
        "somebody else's on the same port",
        "another port",
    ],
)
def test_which_udp_flows_are_stale(sent_to: Address, answered_by: Address, stale: bool) -> None:
    assert is_stale(Flow(sent_to, answered_by, b""), FRONTENDS) is stale
