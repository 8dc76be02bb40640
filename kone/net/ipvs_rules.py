"""What one ServicePort wants of IPVS: virtual servers, elements of sets, addresses; and the rules that ask the sets.

Pure. A packet to a Service's address comes to the host itself (the address is on the dummy link), passes filter INPUT
and is then taken by IPVS; the host's own packets are taken before. What the rules must know of Services is in sets:

    SERVED   where a virtual server is                   accepted, before a firewall's policy can drop it
    DRAIN    where one is that only finishes             for kone: the row is its own
    CLUSTER  cluster IPs                                 masqueraded unless a pod sends
    MASQ     ways in from outside, policy Cluster        masqueraded: the endpoint may be on another node
    LOCAL    ways in from outside, policy Local          masqueraded only when the host itself sends
    INSIDE   of those, the ones without endpoints here   outsiders are dropped, pods and the host are served
    DROP     served elsewhere, not here                  dropped
    FENCED   with source ranges, and ALLOWED for whom    others are dropped
    IPS      Services' addresses                         refused: not even a program that listens everywhere may answer
    LOOP     pods that could reach themselves            masqueraded, or they get answers from a stranger

IPVS takes nothing that comes from 127.0.0.1, so node ports at localhost are led by iptables rules, 64 ports to a chain.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Literal

from kone.net.firewall import ChainId, Jump
from kone.net.ipset import Element, SetSpec, SetType
from kone.net.iptables_rules import MARK_MASQUERADE, MASQUERADE, MASQUERADE_MARK, NODE_PORTS_A_CHAIN, balanced, reject
from kone.net.ipvs_table import PROTOCOLS, Entry, Real, Server
from kone.net.rule_config import ACCEPTED_BIT, RuleConfig
from kone.net.service_map import Endpoint, ServicePort, ServicePortName

LOOPBACK = "127.0.0.1"

Role = Literal["SERVED", "DRAIN", "CLUSTER", "MASQ", "LOCAL", "INSIDE", "DROP", "FENCED", "ALLOWED", "IPS", "LOOP"]
TYPES: Mapping[Role, SetType] = {
    "SERVED": "hash:ip,port",
    "DRAIN": "hash:ip,port",
    "CLUSTER": "hash:ip,port",
    "MASQ": "hash:ip,port",
    "LOCAL": "hash:ip,port",
    "INSIDE": "hash:ip,port",
    "DROP": "hash:ip,port",
    "FENCED": "hash:ip,port",
    "ALLOWED": "hash:ip,port,net",
    "IPS": "hash:ip",
    "LOOP": "hash:ip,port,ip",
}
Member = tuple[Role, Element]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one ServicePort wants. `localhost` are lines, by the chain of the node port."""

    servers: Mapping[Server, Entry] = field(default_factory=dict)
    members: AbstractSet[Member] = frozenset()
    addresses: AbstractSet[str] = frozenset()
    localhost: Mapping[ChainId, tuple[str, ...]] = field(default_factory=dict)


class IpvsRules:
    """Names and rules of one family. `host_ips`, the host's addresses, are given with each question: they change."""

    def __init__(self, config: RuleConfig) -> None:
        self._config = config
        self._names = config.names
        self._pods = [ipaddress.ip_network(cidr) for cidr in config.pod_cidrs or config.cluster_cidrs]
        self.nat = ChainId("nat", self._names.chain("IPVS-SERVICES"))
        self.localhost = ChainId("nat", self._names.chain("IPVS-LOCALHOST"))
        self.postrouting = ChainId("nat", self._names.chain("IPVS-POSTROUTING"))
        self.input = ChainId("filter", self._names.chain("IPVS-INPUT"))
        self.unknown = ChainId("filter", self._names.chain("IPVS-REJECT"))
        self._by_port = self._names.chain("IPVS-N-")

    def is_mine(self, chain: ChainId) -> bool:
        """Whether the proxier, of this run or an earlier one, made the chain."""
        return chain.chain.startswith(self._names.chain("IPVS-"))

    def set_name(self, role: Role) -> str:
        return f"{self._names.chain(role)}{self._config.family}"

    def sets(self) -> list[SetSpec]:
        return [SetSpec(self.set_name(role), kind, self._config.family) for role, kind in TYPES.items()]

    def by_node_port(self, port: int) -> ChainId:
        return ChainId("nat", f"{self._by_port}{port // NODE_PORTS_A_CHAIN}")

    def jumps(self) -> list[Jump]:
        return [
            *(Jump("nat", builtin, self.nat.chain, rank=0) for builtin in ("PREROUTING", "OUTPUT")),
            Jump("nat", "POSTROUTING", self.postrouting.chain, rank=0),
            Jump("filter", "INPUT", self.input.chain, rank=0),
            *(Jump("filter", builtin, self.unknown.chain, rank=0) for builtin in ("FORWARD", "OUTPUT")),
        ]

    def localhost_jumps(self) -> list[Jump]:
        return [Jump("nat", "OUTPUT", self.localhost.chain, rank=1)]

    def static_chains(self) -> dict[ChainId, Sequence[str]]:
        """The rules that stay the same whatever Services there are."""
        not_pods = "".join(f"! -s {cidr} " for cidr in self._config.cluster_cidrs[:1])
        new = "-m conntrack ! --ctstate NEW -j RETURN"
        at = {role: f"-m set --match-set {self.set_name(role)} dst,dst" for role in TYPES}
        of_host = "-m addrtype --src-type LOCAL"
        loops = f"-m set --match-set {self.set_name('LOOP')} dst,dst,src {MASQUERADE}"
        allowed = f"-m set ! --match-set {self.set_name('ALLOWED')} dst,dst,src"
        address = f"-m set --match-set {self.set_name('IPS')} dst"
        v4 = self._config.family == 4
        return {
            self.nat: [
                f"{not_pods}{at['CLUSTER']} {MARK_MASQUERADE}",
                f"{at['MASQ']} {MARK_MASQUERADE}",
                f"{of_host} {at['LOCAL']} {MARK_MASQUERADE}",
            ],
            self.postrouting: [
                loops,
                *([f"-s 127.0.0.0/8 ! -o lo -m conntrack --ctstate DNAT {MASQUERADE}"] if v4 else []),
                f"-m mark ! --mark {MASQUERADE_MARK} -j RETURN",
                "-j MARK --set-xmark 0x0/0x4000",
                MASQUERADE,
            ],
            self.input: [
                new,
                f"{at['FENCED']} {allowed} -j DROP",
                f"{not_pods}{at['INSIDE']} -m addrtype ! --src-type LOCAL -j DROP",
                f"{at['SERVED']} -j MARK --set-xmark {ACCEPTED_BIT:#x}/{ACCEPTED_BIT:#x}",
                f"{at['SERVED']} -j ACCEPT",
                f"{at['DROP']} -j DROP",
                *(f"-p {p.lower()} {address} -j {reject(p)}" for p in PROTOCOLS),
            ],
            self.unknown: [
                new,
                *(
                    f"-d {cidr} {tcp}-m addrtype ! --dst-type LOCAL -j {reject(protocol)}"
                    for cidr in self._config.service_cidrs
                    for protocol, tcp in (("TCP", "-p tcp "), ("", ""))
                ),
            ],
        }

    def localhost_rules(self, buckets: Iterable[ChainId]) -> list[str]:
        """KONE-IPVS-LOCALHOST: to the chains of 64 node ports each, for every protocol."""
        rules = []
        for bucket in sorted(buckets):
            first = int(bucket.chain.removeprefix(self._by_port)) * NODE_PORTS_A_CHAIN
            ports = f"{first}:{min(first + NODE_PORTS_A_CHAIN - 1, 65535)}"
            rules += [f"-d 127.0.0.0/8 -p {p} -m {p} --dport {ports} -j {bucket.chain}" for p in ("tcp", "udp", "sctp")]
        return rules

    def wanted(self, name: ServicePortName, port: ServicePort, host_ips: AbstractSet[str]) -> Wanted:
        """What this port wants, on a host that has these addresses."""
        wants = _Wants(self._config, port, host_ips)
        wants.serve(port.cluster_ip, port.port, port.internal_endpoints, "CLUSTER")
        if port.externally_accessible:
            outside = port.external_endpoints or port.cluster_endpoints
            role: Role = "LOCAL" if port.external_local else "MASQ"
            fronts = [(ip, port.port) for ip in (*port.external_ips, *port.load_balancer_ips)]
            if port.node_port:
                fronts += [(ip, port.node_port) for ip in host_ips if self._config.has_node_ports(ip)]
            for ip, number in fronts:
                wants.serve(ip, number, outside, role)
                if port.external_local and outside and not port.local_endpoints:
                    wants.mark("INSIDE", ip, number)
            if port.source_ranges:
                self._fence(port, wants)
        for endpoint in {*port.cluster_endpoints, *port.local_endpoints}:
            address = ipaddress.ip_address(endpoint.ip)
            if endpoint.local and any(address in network for network in self._pods):
                loop = Element(endpoint.ip, PROTOCOLS[port.protocol], endpoint.port, endpoint.ip)
                wants.members.add(("LOOP", loop))
        return Wanted(wants.servers, wants.members, wants.addresses, self._at_localhost(name, port))

    def _fence(self, port: ServicePort, wants: _Wants) -> None:
        for ip in port.load_balancer_ips:
            wants.mark("FENCED", ip, port.port)
            for cidr in port.source_ranges:
                wants.members.add(("ALLOWED", Element(ip, PROTOCOLS[port.protocol], port.port, cidr)))

    def _at_localhost(self, name: ServicePortName, port: ServicePort) -> dict[ChainId, tuple[str, ...]]:
        endpoints = port.cluster_endpoints or port.local_endpoints
        at_localhost = self._config.family == 4 and self._config.has_node_ports(LOOPBACK)
        if not port.node_port or not endpoints or not at_localhost:
            return {}
        protocol = port.protocol.lower()

        def record(endpoint: Endpoint) -> str:
            return self._names.hashed_chain("REC", f"{name} {endpoint}")

        match = f"-p {protocol} -m {protocol} --dport {port.node_port}"
        return {self.by_node_port(port.node_port): tuple(balanced(match, endpoints, port.affinity_s, record))}


class _Wants:
    """What has been found so far of one port."""

    def __init__(self, config: RuleConfig, port: ServicePort, host_ips: AbstractSet[str]) -> None:
        self._scheduler = config.ipvs_scheduler
        self._port = port
        self._protocol = PROTOCOLS[port.protocol]
        self._host_ips = host_ips
        self.servers: dict[Server, Entry] = {}
        self.members: set[Member] = set()
        self.addresses: set[str] = set()

    def serve(self, ip: str, number: int, endpoints: Sequence[Endpoint], role: Role) -> None:
        """A virtual server there, or what says why there is none."""
        if ip not in self._host_ips:  # the host's own are there, and others may listen at them
            self.addresses.add(ip)
            self.members.add(("IPS", Element(ip)))
        if endpoints:
            weights = {Real(e.ip, e.port): 1 for e in endpoints}
            self.servers[Server(self._protocol, ip, number)] = Entry(self._scheduler, self._port.affinity_s, weights)
            self.mark("SERVED", ip, number)
            self.mark(role, ip, number)
        elif self._port.has_endpoints:
            self.mark("DROP", ip, number)

    def mark(self, role: Role, ip: str, number: int) -> None:
        self.members.add((role, Element(ip, self._protocol, number)))
