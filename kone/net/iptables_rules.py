"""The iptables proxier's rules: pure, from a ServicePort to the lines of its chains.

New connections only are looked at (table nat), and few rules each: KONE-SERVICES leads by the address's last octet to
one of 256 chains KONE-S-n, which hold the endpoints themselves. So 5,000 Services make 256 chains, not 15,000, which
is what a first load and a change cost time by, and a packet passes some 40 rules, not 5,000. A Service that is also
reached from outside has chains of its own, since several ways lead to the same endpoints:

    KONE-S-n ----------------------------> endpoints           cluster IP only
    KONE-S-n ----------------> KONE-SVC-x  endpoints, policy Cluster
    KONE-S-n (external IPs)   \\
    KONE-N-m (node ports) ----> KONE-EXT-x > KONE-SVC-x, or KONE-SVL-x: endpoints on this node, policy Local
    KONE-S-n (load balancer) -> KONE-FW-x  > KONE-EXT-x for the allowed sources

In KONE-POSTROUTING what was led to the very endpoint it came from is masqueraded (KONE-HAIRPIN, by networks of 256
addresses KONE-H-x), as is what was marked on the way.

What reaches table filter with a Service's address has found no endpoint, and is refused there.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kone.net.firewall import ChainId, Jump
from kone.net.names import digest
from kone.net.rule_config import MASQUERADE_BIT, RuleConfig, whole
from kone.net.service_map import Endpoint, ServicePort, ServicePortName

NODE_PORTS_A_CHAIN = 64
MASQUERADE_MARK = f"{MASQUERADE_BIT:#x}/{MASQUERADE_BIT:#x}"  # cleared again in POSTROUTING
MARK_MASQUERADE = f"-j MARK --set-xmark {MASQUERADE_MARK}"
MASQUERADE = "-j MASQUERADE --random-fully"


@dataclass(frozen=True, slots=True)
class Rules:
    """What one ServicePort puts into chains: lines of shared chains, chains of its own, and who may meet itself."""

    shared: Mapping[ChainId, tuple[str, ...]] = field(default_factory=dict)
    own: Mapping[ChainId, tuple[str, ...]] = field(default_factory=dict)
    loopbacks: frozenset[str] = frozenset()  # endpoints that could connect to themselves through the Service


class Chains:
    """The names and the fixed parts of the proxier's chains."""

    def __init__(self, config: RuleConfig) -> None:
        self._config = config
        self._names = config.names
        self._pods = [ipaddress.ip_network(cidr) for cidr in config.pod_cidrs or config.cluster_cidrs]
        self.services = ChainId("nat", self._names.chain("SERVICES"))
        self.node_ports = ChainId("nat", self._names.chain("NODEPORTS"))
        self.postrouting = ChainId("nat", self._names.chain("POSTROUTING"))
        self.hairpin = ChainId("nat", self._names.chain("HAIRPIN"))
        self.reject = ChainId("filter", self._names.chain("REJECT"))
        self._by_address = self._names.chain("S-")
        self._by_port = self._names.chain("N-")
        self._by_loopback = self._names.chain("H-")
        self._of_service = tuple(self._names.chain(f"{role}-") for role in ("SVC", "SVL", "EXT", "FW"))

    def by_address(self, ip: str) -> ChainId:
        return ChainId("nat", f"{self._by_address}{ipaddress.ip_address(ip).packed[-1]}")

    def by_node_port(self, port: int) -> ChainId:
        return ChainId("nat", f"{self._by_port}{port // NODE_PORTS_A_CHAIN}")

    def by_loopback(self, network: str) -> ChainId:
        return ChainId("nat", f"{self._by_loopback}{digest(network, 6).upper()}")

    def of_service(self, role: str, name: ServicePortName) -> ChainId:
        return ChainId("nat", self._names.hashed_chain(role, "/".join(name)))

    def is_mine(self, chain: ChainId) -> bool:
        """Whether the proxier, of this run or an earlier one, made the chain."""
        fixed = (self.services, self.node_ports, self.postrouting, self.hairpin, self.reject)
        return chain in fixed or (
            chain.table == "nat"
            and chain.chain.startswith((self._by_address, self._by_port, self._by_loopback, *self._of_service))
        )

    def is_pod_here(self, ip: str) -> bool:
        """Whether the address is one of this node's pods'."""
        address = ipaddress.ip_address(ip)
        return any(address in network for network in self._pods)

    def jumps(self) -> list[Jump]:
        nat = [Jump("nat", builtin, self.services.chain, rank=0) for builtin in ("PREROUTING", "OUTPUT")]
        filters = [Jump("filter", b, self.reject.chain, rank=0) for b in ("INPUT", "FORWARD", "OUTPUT")]
        return [*nat, Jump("nat", "POSTROUTING", self.postrouting.chain, rank=0), *filters]

    def services_rules(self, buckets: Iterable[ChainId]) -> list[str]:
        """KONE-SERVICES, given the chains KONE-S-n and KONE-N-m that hold rules."""
        numbers = sorted(
            int(b.chain.removeprefix(self._by_address)) for b in buckets if b.chain.startswith(self._by_address)
        )
        own = " ".join(f"! -s {cidr}" for cidr in self._config.cluster_cidrs[:1])
        rules = [f"-d {cidr} {own} {MARK_MASQUERADE}".replace("  ", " ") for cidr in self._config.service_cidrs]
        v6 = self._config.family == 6
        mask = "::ff" if v6 else "0.0.0.255"
        rules += [
            f"-d {ipaddress.IPv6Address(n) if v6 else ipaddress.IPv4Address(n)}/{mask} -j {self._by_address}{n}"
            for n in numbers
        ]
        if any(b.chain.startswith(self._by_port) for b in buckets):
            rules += [f"{at} -j {self.node_ports.chain}" for at in at_node(self._config)]
        return rules

    def node_ports_rules(self, buckets: Iterable[ChainId]) -> list[str]:
        """KONE-NODEPORTS: by 64 ports to a chain each, for every protocol."""
        rules = []
        for bucket in sorted(buckets):
            if bucket.chain.startswith(self._by_port):
                first = int(bucket.chain.removeprefix(self._by_port)) * NODE_PORTS_A_CHAIN
                ports = f"{first}:{min(first + NODE_PORTS_A_CHAIN - 1, 65535)}"
                rules += [f"-p {p} -m {p} --dport {ports} -j {bucket.chain}" for p in ("tcp", "udp", "sctp")]
        return rules

    def postrouting_rules(self) -> list[str]:
        return [
            "-m conntrack ! --ctstate DNAT -j RETURN",
            f"-j {self.hairpin.chain}",
            f"-m mark ! --mark {MASQUERADE_MARK} -j RETURN",
            # The packet may pass again, encapsulated: it must not be masqueraded twice.
            "-j MARK --set-xmark 0x0/0x4000",
            MASQUERADE,
        ]

    def hairpin_rules(self, networks: Iterable[str]) -> list[str]:
        """KONE-HAIRPIN: what came from an endpoint and goes to one, by the small network that both are in."""
        return [f"-s {n} -d {n} -j {self.by_loopback(n).chain}" for n in sorted(networks)]

    def reject_rules(self, refused: Iterable[str]) -> list[str]:
        """KONE-REJECT around the Services' own lines."""
        unknown = [
            f"-d {c} {tcp}-m addrtype ! --dst-type LOCAL -j {reject(protocol)}"
            for c in self._config.service_cidrs
            for protocol, tcp in (("TCP", "-p tcp "), ("", ""))
        ]
        # What goes to the host itself is refused as it comes in: sending it is no error, as where nobody listens.
        return ["-o lo -j RETURN", "-m conntrack ! --ctstate NEW -j RETURN", *refused, *unknown]


def rules_of(
    name: ServicePortName, port: ServicePort, config: RuleConfig, chains: Chains, *, remarks: bool = True
) -> Rules:
    """The rules of one ServicePort; `remarks` says in each which Service it is of."""
    shared: dict[ChainId, list[str]] = {}
    own: dict[ChainId, tuple[str, ...]] = {}
    protocol = port.protocol.lower()
    comment = f' -m comment --comment "{name}"' if remarks else ""

    def bare(ip: str) -> str:
        return f"-d {whole(ip)} -p {protocol} -m {protocol} --dport {port.port}"

    def at(ip: str) -> str:
        return f"{bare(ip)}{comment}"

    def balance(match: str, endpoints: Sequence[Endpoint]) -> Iterator[str]:
        def record(endpoint: Endpoint) -> str:
            return config.names.hashed_chain("REC", f"{name} {endpoint}")

        return balanced(match, endpoints, port.affinity_s, record, comment)

    def own_chain(role: str, rules: Iterable[str]) -> str:
        chain = chains.of_service(role, name)
        own[chain] = tuple(rules)
        return chain.chain

    capture = shared.setdefault(chains.by_address(port.cluster_ip), [])
    cluster_chain = local_chain = ""
    if port.externally_accessible:
        if port.cluster_endpoints:
            cluster_chain = own_chain("SVC", balance(f"-p {protocol}", port.cluster_endpoints))
        if port.local_endpoints:
            local_chain = own_chain("SVL", balance(f"-p {protocol}", port.local_endpoints))

    internal_chain = local_chain if port.internal_local else cluster_chain
    if internal_chain:
        capture.append(f"{at(port.cluster_ip)} -j {internal_chain}")
    elif port.internal_endpoints:
        capture += balance(bare(port.cluster_ip), port.internal_endpoints)

    if port.externally_accessible and port.has_endpoints:
        external = own_chain("EXT", _external_rules(port, cluster_chain, local_chain, config))
        for ip in port.external_ips:
            shared.setdefault(chains.by_address(ip), []).append(f"{at(ip)} -j {external}")
        balancer = external
        if port.load_balancer_ips and port.source_ranges:
            balancer = own_chain("FW", [f"-s {s} -j {external}" for s in _allowed(port, config)])
        for ip in port.load_balancer_ips:
            shared.setdefault(chains.by_address(ip), []).append(f"{at(ip)} -j {balancer}")
        if port.node_port:
            shared.setdefault(chains.by_node_port(port.node_port), []).append(
                f"-p {protocol} -m {protocol} --dport {port.node_port}{comment} -j {external}"
            )

    refused = list(_refused(port, at, at_node(config), comment))
    if refused:
        shared[chains.reject] = refused
    return Rules(
        shared={chain: tuple(rules) for chain, rules in shared.items() if rules},
        own=own,
        loopbacks=frozenset(
            e.ip for e in (*port.cluster_endpoints, *port.local_endpoints) if e.local and chains.is_pod_here(e.ip)
        ),
    )


def _external_rules(port: ServicePort, cluster: str, local: str, config: RuleConfig) -> Iterator[str]:
    if not port.external_local:
        # The endpoint may be on another node, and must answer through this one.
        yield MARK_MASQUERADE
        if cluster:
            yield f"-j {cluster}"
        return
    # Pods and the node itself are not outside: the policy for outside traffic does not bind them.
    if cluster:
        for cidr in config.cluster_cidrs:
            yield f"-s {cidr} -j {cluster}"
        yield f"-m addrtype --src-type LOCAL {MARK_MASQUERADE}"
        yield f"-m addrtype --src-type LOCAL -j {cluster}"
    if local:
        yield f"-j {local}"


def _allowed(port: ServicePort, config: RuleConfig) -> list[str]:
    """Sources that may use the load balancer; where the node may, so may its own way to the balancer's address."""
    ranges = [ipaddress.ip_network(text) for text in port.source_ranges]
    node_may = any(ipaddress.ip_address(ip) in network for ip in config.node_ips for network in ranges)
    return [*port.source_ranges, *(whole(ip) for ip in port.load_balancer_ips if node_may)]


def _refused(port: ServicePort, at: Callable[[str], str], places: Sequence[str], comment: str) -> Iterator[str]:
    """Lines of KONE-REJECT: refused where nobody serves, dropped where somebody does, but not on this node. `places`
    are where node ports are."""
    if not port.internal_endpoints:
        yield f"{at(port.cluster_ip)} -j {'DROP' if port.has_endpoints else reject(port.protocol)}"
    if not port.external_endpoints:
        target = "DROP" if port.has_endpoints else reject(port.protocol)
        for ip in (*port.external_ips, *port.load_balancer_ips):
            yield f"{at(ip)} -j {target}"
        if port.node_port:
            protocol = port.protocol.lower()
            match = f"-p {protocol} -m {protocol} --dport {port.node_port}{comment}"
            for place in places:
                yield f"{place} {match} -j {target}"
    elif port.source_ranges:
        for ip in port.load_balancer_ips:
            yield f"{at(ip)} -j DROP"


def at_node(config: RuleConfig) -> list[str]:
    """Where node ports are: matches of the host's addresses that have them."""
    local = "-m addrtype --dst-type LOCAL"
    return [f"-d {cidr} {local}" for cidr in config.node_port_cidrs] or [local]


def reject(protocol: str) -> str:
    """The target that refuses: by a reset where there is one, since the kernel sends few ICMP messages a second."""
    return "REJECT --reject-with tcp-reset" if protocol == "TCP" else "REJECT"


def balanced(
    match: str, endpoints: Sequence[Endpoint], affinity_s: int, record: Callable[[Endpoint], str], comment: str = ""
) -> Iterator[str]:
    """One endpoint of n with equal chance: 1/n, then 1/(n-1) of what is left, …; with affinity the known one first.

    `record` names the kernel's list of an endpoint's clients (xt_recent). The comment is the last rule's.
    """
    if affinity_s:
        for endpoint in endpoints:
            yield f"{match} -m recent --name {record(endpoint)} --update --seconds {affinity_s} --reap {_to(endpoint)}"
    for left, endpoint in zip(range(len(endpoints), 0, -1), endpoints, strict=True):
        chance = f" -m statistic --mode random --probability {1 / left:.10f}" if left > 1 else ""
        note = f" -m recent --name {record(endpoint)} --set" if affinity_s else ""
        remark = comment if left == 1 else ""
        yield f"{match}{chance}{note}{remark} {_to(endpoint)}"


def loopback_network(ip: str) -> str:
    """The 256 addresses that share a chain of loopback rules with this one."""
    return str(ipaddress.ip_network(f"{ip}/{120 if ':' in ip else 24}", strict=False))


def loopback_rules(ips: Iterable[str]) -> list[str]:
    """An endpoint that reached itself must be answered through the host, or it gets answers from a stranger."""
    return [f"-s {whole(ip)} -d {whole(ip)} {MASQUERADE}" for ip in sorted(ips)]


def _to(endpoint: Endpoint) -> str:
    return f"-j DNAT --to-destination {endpoint}"
