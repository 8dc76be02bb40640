"""The ipvs proxier's wants: which virtual servers, elements of sets and addresses one port of a Service makes."""

from __future__ import annotations

from typing import Any

import pytest

from kone.net.ipset import NAME_MAX, Element
from kone.net.ipvs_rules import TYPES, IpvsRules, Wanted
from kone.net.ipvs_table import Entry, Real, Server, read_table, shape
from kone.net.names import LINK_MAX, Names
from kone.net.rule_config import RuleConfig
from kone.net.service_map import Endpoint, ServicePort, ServicePortName

NAME = ServicePortName("default", "web", "http", "TCP")
HOST, VIP, BALANCER = "192.0.2.2", "10.96.0.20", "203.0.113.6"
A, B = Endpoint("10.244.0.5", 8080), Endpoint("10.244.0.6", 8080)
REAL_A, REAL_B = Real(A.ip, 8080), Real(B.ip, 8080)


def rules(**more: Any) -> IpvsRules:
    return IpvsRules(RuleConfig(Names(), ["10.244.0.0/16"], ["10.96.0.0/16"], [HOST], ["10.244.0.0/24"], **more))


def wanted(*endpoints: Endpoint, **more: Any) -> Wanted:
    fields = {"cluster_endpoints": endpoints, "has_endpoints": bool(endpoints)} | more
    return rules().wanted(NAME, ServicePort("TCP", VIP, 80, **fields), frozenset({HOST}))


def roles(found: Wanted, ip: str, port: int) -> set[str]:
    """The sets in which this address and port is."""
    return {role for role, element in found.members if element == Element(ip, 6, port)}


def test_a_cluster_ip() -> None:
    found = wanted(A, B, affinity_s=60)
    assert found.servers == {Server(6, VIP, 80): Entry("rr", 60, {REAL_A: 1, REAL_B: 1})}
    assert found.addresses == {VIP}
    assert roles(found, VIP, 80) == {"SERVED", "CLUSTER"}
    assert ("IPS", Element(VIP)) in found.members
    assert ("LOOP", Element(A.ip, 6, 8080, A.ip)) in found.members


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({}, set()), ({"has_endpoints": True, "internal_local": True}, {"DROP"})],
    ids=["nobody serves: refused by its address", "somebody does elsewhere"],
)
def test_what_nobody_serves_here(fields: dict[str, Any], expected: set[str]) -> None:
    found = wanted(**fields)
    assert not found.servers
    assert found.addresses == {VIP}
    assert roles(found, VIP, 80) == expected


def test_ways_in_from_outside() -> None:
    found = wanted(A, node_port=30080, load_balancer_ips=(BALANCER,))
    assert set(found.servers) == {Server(6, VIP, 80), Server(6, HOST, 30080), Server(6, BALANCER, 80)}
    assert roles(found, HOST, 30080) == roles(found, BALANCER, 80) == {"SERVED", "MASQ"}
    assert found.addresses == {VIP, BALANCER}, "the host's own address is there already"


def test_the_hosts_own_address_as_a_balancers_is_not_shut_to_all_else() -> None:
    found = wanted(A, load_balancer_ips=(HOST,))
    assert Server(6, HOST, 80) in found.servers
    assert ("IPS", Element(HOST)) not in found.members
    assert HOST not in found.addresses


def test_external_policy_local() -> None:
    here = wanted(A, B, node_port=30080, external_local=True, local_endpoints=(A,))
    assert here.servers[Server(6, HOST, 30080)].weights == {REAL_A: 1}
    assert here.servers[Server(6, VIP, 80)].weights == {REAL_A: 1, REAL_B: 1}
    assert roles(here, HOST, 30080) == {"SERVED", "LOCAL"}
    elsewhere = wanted(A, node_port=30080, external_local=True)
    assert elsewhere.servers[Server(6, HOST, 30080)].weights == {REAL_A: 1}, "for pods and the host"
    assert roles(elsewhere, HOST, 30080) == {"SERVED", "LOCAL", "INSIDE"}


def test_source_ranges() -> None:
    found = wanted(A, load_balancer_ips=(BALANCER,), source_ranges=("198.51.100.0/24",))
    assert "FENCED" in roles(found, BALANCER, 80)
    assert ("ALLOWED", Element(BALANCER, 6, 80, "198.51.100.0/24")) in found.members


def test_node_ports_at_localhost_are_led_by_rules() -> None:
    ((chain, lines),) = wanted(A, node_port=30080).localhost.items()
    assert chain.chain == "KONE-IPVS-N-470"
    assert lines == ("-p tcp -m tcp --dport 30080 -j DNAT --to-destination 10.244.0.5:8080",)


def test_the_rules_do_not_grow_with_services() -> None:
    chains = rules().static_chains()
    assert sum(map(len, chains.values())) < 25
    assert all(rules().is_mine(chain) for chain in chains)


def test_names_fit_the_kernel() -> None:
    longest = Names("abcdefghij")
    config = RuleConfig(longest, ["fd00::/56"], ["fd00:1::/112"])
    assert max(len(IpvsRules(config).set_name(role)) for role in TYPES) <= NAME_MAX
    assert len(longest.dummy) <= LINK_MAX
    assert longest.dummy != Names("bcdefghij").dummy


TEXT = b"""IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
UDP  [fd00:0000:0000:0000:0000:0000:0000:0020]:0035 lc
  -> [fd00:0000:0000:0000:0000:0000:0000:0005]:0035      Masq    1      0          0
FWM  00000007 rr
  -> 0AF40009:1F90      Masq    1      0          0
TCP  0A600014:0050 rr  persistent 2700000 FFFFFFFF
  -> 0AF40006:1F90      Masq    1      7          2
  -> 0AF40005:1F90      Masq    0      1          0
"""


def test_the_kernels_table_is_read() -> None:
    web = Server(6, VIP, 80)
    assert read_table(4, TEXT, {web: 10800}) == {web: Entry("rr", 10800, {REAL_B: 1, REAL_A: 0})}
    assert read_table(6, TEXT, {}) == {Server(17, "fd00::20", 53): Entry("lc", 0, {Real("fd00::5", 53): 1})}


def test_connections_do_not_change_the_tables_shape() -> None:
    assert shape(TEXT) == shape(TEXT.replace(b"7          2", b"81         0"))
    assert shape(TEXT) != shape(TEXT.replace(b"Masq    0", b"Masq    1"))
