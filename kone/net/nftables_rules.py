"""The nftables proxier's table: pure, from a ServicePort to elements of maps that all Services share.

nf_tables loads elements thirty times faster than chains, so there is no chain for a Service. `services` leads an
address, protocol and port to one of a few chains, which one by the number of endpoints; that chain takes a random
number below it, and for each number there is a map of the endpoints that have it:

    services        10.96.0.20 . tcp . 80 : goto all-2
    all-2           numgen random mod 2 vmap { 0 : goto all-to-0, 1 : goto all-to-1 }
    all-to-1        dnat to ip daddr . meta l4proto . th dport map @all-at-1
    all-at-1        10.96.0.20 . tcp . 80 : 10.244.0.6 . 8080

(One map whose key has the number too needs a type that nft 1.0.6 cannot read back: rules about it are then refused.)

    all-N           cluster IPs                                    (local-N: internal policy Local)
    out-N           external IPs, load balancers: the same, and the client's address is hidden
    mixed-N-M       external policy Local: all for pods and the node, local ones for everybody else

Node ports have the same without the address: `node-ports`, node-all-N, … Only session affinity, which needs a set of
clients for each endpoint, and source ranges make chains of a Service's own: stick-…, from-….

What reaches the filter chains with a Service's address has found no endpoint: `refused` says whether it is refused, or
dropped because somebody serves it elsewhere. They come before the chains of Docker and iptables, which would drop it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from kone.net.names import digest
from kone.net.nft_ruleset import NftSet
from kone.net.rule_config import MASQUERADE_BIT, RuleConfig, whole
from kone.net.service_map import Endpoint, ServicePort, ServicePortName

NAT_PRIORITY, SOURCE_PRIORITY, FILTER_PRIORITY = -105, 95, -10  # before iptables' own at -100, 100 and 0
MARK = f"meta mark set meta mark or {MASQUERADE_BIT:#x}"
UNMARK = f"meta mark set meta mark and {0xFFFFFFFF ^ MASQUERADE_BIT:#x}"
MASQUERADE = "masquerade fully-random"
PORTS = "meta l4proto { tcp, udp, sctp }"
AT_NODE = "meta l4proto . th dport"
DYNAMIC = "flags dynamic, timeout; timeout "

SERVICES, NODE_PORTS, HAIRPINS = "services", "node-ports", "hairpins"
REFUSED, REFUSED_NODE_PORTS = "refused", "refused-node-ports"


class ElementId(NamedTuple):
    """An element by its set and key."""

    set: str
    key: str


@dataclass(frozen=True, slots=True)
class Elements:
    """What one ServicePort puts into the table.

    `shared` elements may be wanted by several Services: of its cluster IP's and of its other addresses' the first
    come first. `chains` and `sets` are its own.
    """

    shared: Mapping[ElementId, str] = field(default_factory=dict)
    inside: frozenset[ElementId] = frozenset()  # those that are its cluster IP's
    chains: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sets: Mapping[str, NftSet] = field(default_factory=dict)


class Table:
    """The fixed parts of one family's table, and the chains that many Services share."""

    def __init__(self, config: RuleConfig) -> None:
        self._config = config
        self.ip = "ip6" if config.family == 6 else "ip"
        self.address = "ipv6_addr" if config.family == 6 else "ipv4_addr"
        self.at_address = f"{self.ip} daddr . {AT_NODE}"
        self._pods = [ipaddress.ip_network(cidr) for cidr in config.pod_cidrs or config.cluster_cidrs]
        self.local_source = [f"fib saddr type local {MARK}"]

    def is_pod_here(self, ip: str) -> bool:
        """Whether the address is one of this node's pods'."""
        address = ipaddress.ip_address(ip)
        return any(address in network for network in self._pods)

    def sets(self) -> dict[str, NftSet]:
        verdicts = f"{self.address} . inet_proto . inet_service : verdict"
        node_verdicts = "inet_proto . inet_service : verdict"
        return {
            SERVICES: NftSet(verdicts),
            REFUSED: NftSet(verdicts),
            NODE_PORTS: NftSet(node_verdicts),
            REFUSED_NODE_PORTS: NftSet(node_verdicts),
            HAIRPINS: NftSet(f"{self.address} . {self.address}"),
        }

    def endpoint_map(self, name: str) -> NftSet:
        """A map of the endpoints of one number: all-at-2, node-local-at-0."""
        at = "" if name.startswith("node-") else f"{self.address} . "
        return NftSet(f"{at}inet_proto . inet_service : {self.address} . inet_service")

    def bases(self) -> dict[str, str]:
        hooks = {
            "prerouting": ("nat", "prerouting", NAT_PRIORITY),
            "output": ("nat", "output", NAT_PRIORITY),
            "postrouting": ("nat", "postrouting", SOURCE_PRIORITY),
            "filter-input": ("filter", "input", FILTER_PRIORITY),
            "filter-forward": ("filter", "forward", FILTER_PRIORITY),
            "filter-output": ("filter", "output", FILTER_PRIORITY),
        }
        return {name: f"type {kind} hook {hook} priority {rank};" for name, (kind, hook, rank) in hooks.items()}

    def chains(self) -> dict[str, tuple[str, ...]]:
        """The chains that are always there. Those that others lead to come first."""
        ip, config = self.ip, self._config
        strangers = "".join(f"{ip} saddr != {cidr} " for cidr in config.cluster_cidrs[:1])
        return {
            "find": (
                *(f"{ip} daddr {cidr} {strangers}{MARK}" for cidr in config.service_cidrs),
                f"{self.at_address} vmap @{SERVICES}",
                *(f"{at}{AT_NODE} vmap @{NODE_PORTS}" for at in self._at_node()),
            ),
            "hide": (
                # What was led to the very endpoint it came from must be answered through the host.
                f"{ip} saddr . {ip} daddr @{HAIRPINS} {MASQUERADE}",
                f"meta mark and {MASQUERADE_BIT:#x} == 0 return",
                UNMARK,  # the packet may pass again, encapsulated
                MASQUERADE,
            ),
            "refuse": ("meta l4proto tcp reject with tcp reset", "reject"),
            "unserved": (
                f"{self.at_address} vmap @{REFUSED}",
                *(f"{at}{AT_NODE} vmap @{REFUSED_NODE_PORTS}" for at in self._at_node()),
                *(f"{ip} daddr {cidr} fib daddr type != local goto refuse" for cidr in config.service_cidrs),
            ),
            "prerouting": ("jump find",),
            "output": ("jump find",),
            "postrouting": ("ct status dnat jump hide",),
            "filter-input": ("ct state new jump unserved",),
            "filter-forward": ("ct state new jump unserved",),
            # What goes to the host itself is refused as it comes in: sending it is no error, as where nobody listens.
            "filter-output": ('oifname != "lo" ct state new jump unserved',),
        }

    def _at_node(self) -> list[str]:
        """Where node ports are: matches of the host's addresses that have them."""
        cidrs = self._config.node_port_cidrs
        return [*(f"{self.ip} daddr {cidr} fib daddr type local " for cidr in cidrs)] or ["fib daddr type local "]

    def shared_chain(self, name: str) -> tuple[str, ...]:
        """The rules of a chain such as out-2 or node-mixed-2-1, which its name tells."""
        prefix = "node-" if name.startswith("node-") else ""
        role, *numbers = name.removeprefix("node-").split("-")
        if numbers[0] == "to":
            return (self._lead(prefix, role, int(numbers[1])),)
        counts = [int(number) for number in numbers]
        if role == "mixed":
            every, local = counts
            return (
                *(self.outsiders_not(self._balanced(prefix, "all", every)) if every else ()),
                *((self._balanced(prefix, "local", local),) if local else ()),
            )
        if role == "out":
            return (MARK, self._balanced(prefix, "all", counts[0]))
        return (self._balanced(prefix, role, counts[0]),)

    def outsiders_not(self, verdict: str) -> Iterator[str]:
        """What policy Local does for pods and the node itself, which are not outside."""
        for cidr in self._config.cluster_cidrs:
            yield f"{self.ip} saddr {cidr} {verdict}"
        yield from self.local_source
        yield f"fib saddr type local {verdict}"

    def _balanced(self, prefix: str, view: str, count: int) -> str:
        if count == 1:
            return self._lead(prefix, view, 0)
        ways = ", ".join(f"{number} : goto {prefix}{view}-to-{number}" for number in range(count))
        return f"numgen random mod {count} vmap {{ {ways} }}"

    def _lead(self, prefix: str, view: str, number: int) -> str:
        at = AT_NODE if prefix else self.at_address
        return f"{PORTS} dnat {self.ip} to {at} map @{prefix}{view}-at-{number}"


def chain_to(endpoint_map: str) -> str:
    """The chain that leads to the endpoints of a map, "" for a set that is no such map: all-to-2 for all-at-2."""
    view, at, number = endpoint_map.rpartition("-at-")
    return f"{view}-to-{number}" if at else ""


def shared_chain_of(verdict: str) -> str:
    """The chain that many share to which a verdict, or a rule that ends in one, leads; "" where it leads to none."""
    _, goto, chain = verdict.rpartition("goto ")
    return chain if goto and chain.split("-")[0] in ("all", "local", "out", "mixed", "node") else ""


def elements_of(name: ServicePortName, port: ServicePort, config: RuleConfig, table: Table) -> Elements:
    """What one ServicePort wants of the table."""
    made = _Making(name, port, config, table)
    made.internal()
    if port.externally_accessible and port.has_endpoints:
        made.external()
    made.refused()
    made.hairpins()
    return Elements(made.shared, frozenset(made.inside), made.chains, made.sets)


class _Making:
    """Elements in the making."""

    def __init__(self, name: ServicePortName, port: ServicePort, config: RuleConfig, table: Table) -> None:
        self._identity = digest("/".join(name), 12)
        self._port = port
        self._config = config
        self._table = table
        self._protocol = port.protocol.lower()
        self.shared: dict[ElementId, str] = {}
        self.inside: set[ElementId] = set()
        self.chains: dict[str, tuple[str, ...]] = {}
        self.sets: dict[str, NftSet] = {}

    def internal(self) -> None:
        port = self._port
        view = "local" if port.internal_local else "all"
        if port.internal_endpoints:
            key = self._at(port.cluster_ip)
            before = set(self.shared)
            self.shared[ElementId(SERVICES, key)] = f"goto {self._balancer(view)}"
            self._spread("", key, view)
            self.inside = set(self.shared) - before

    def external(self) -> None:
        port = self._port
        if not (port.cluster_endpoints or (port.external_local and port.local_endpoints)):
            return
        views = ("all", "local") if port.external_local else ("all",)
        verdict = f"goto {self._external_chain()}"
        for ip in port.external_ips:
            self._lead("", self._at(ip), verdict, views)
        if port.load_balancer_ips:
            allowed = verdict
            if port.source_ranges:
                chain = f"from-{self._identity}"
                self.chains[chain] = (
                    f"{self._table.ip} saddr {{ {', '.join(self._allowed())} }} {verdict}",
                    "drop",
                )
                allowed = f"goto {chain}"
            for ip in port.load_balancer_ips:
                self._lead("", self._at(ip), allowed, views)
        if port.node_port:
            at_node = verdict if port.affinity_s else verdict.replace("goto ", "goto node-")
            self._lead("node-", f"{self._protocol} . {port.node_port}", at_node, views)

    def refused(self) -> None:
        """Refused where nobody serves, dropped where somebody does, but not on this node."""
        port = self._port
        verdict = "drop" if port.has_endpoints else "goto refuse"
        if not port.internal_endpoints:
            key = ElementId(REFUSED, self._at(port.cluster_ip))
            self.shared[key] = verdict
            self.inside.add(key)
        if not port.external_endpoints:
            for ip in (*port.external_ips, *port.load_balancer_ips):
                self.shared[ElementId(REFUSED, self._at(ip))] = verdict
            if port.node_port:
                self.shared[ElementId(REFUSED_NODE_PORTS, f"{self._protocol} . {port.node_port}")] = verdict

    def hairpins(self) -> None:
        for endpoint in (*self._port.cluster_endpoints, *self._port.local_endpoints):
            if endpoint.local and self._table.is_pod_here(endpoint.ip):
                self.shared[ElementId(HAIRPINS, f"{endpoint.ip} . {endpoint.ip}")] = ""

    def _at(self, ip: str) -> str:
        return f"{ip} . {self._protocol} . {self._port.port}"

    def _endpoints(self, view: str) -> Sequence[Endpoint]:
        return self._port.local_endpoints if view == "local" else self._port.cluster_endpoints

    def _lead(self, prefix: str, key: str, verdict: str, views: Iterable[str]) -> None:
        self.shared[ElementId(NODE_PORTS if prefix else SERVICES, key)] = verdict
        for view in views:
            self._spread(prefix, key, view)

    def _spread(self, prefix: str, key: str, view: str) -> None:
        if not self._port.affinity_s:
            for number, endpoint in enumerate(self._endpoints(view)):
                element = ElementId(f"{prefix}{view}-at-{number}", key)
                self.shared[element] = f"{endpoint.ip} . {endpoint.port}"

    def _balancer(self, view: str) -> str:
        """The chain that leads to one of the view's endpoints."""
        if not self._port.affinity_s:
            return f"{view}-{len(self._endpoints(view))}"
        chain = f"stick-{view}-{self._identity}"
        self.chains[chain] = tuple(self._sticky(self._endpoints(view)))
        return chain

    def _external_chain(self) -> str:
        port = self._port
        if not port.affinity_s:
            every, local = len(port.cluster_endpoints), len(port.local_endpoints)
            return f"mixed-{every}-{local}" if port.external_local else f"out-{every}"
        chain = f"stick-out-{self._identity}"
        if port.external_local:
            rules: list[str] = []
            if port.cluster_endpoints:
                rules += self._table.outsiders_not(f"goto {self._balancer('all')}")
            if port.local_endpoints:
                rules.append(f"goto {self._balancer('local')}")
            self.chains[chain] = tuple(rules)
        else:
            self.chains[chain] = (MARK, f"goto {self._balancer('all')}")
        return chain

    def _sticky(self, endpoints: Sequence[Endpoint]) -> Iterator[str]:
        """The endpoint that knows the client, else one with equal chance: 1/n, then 1/(n-1) of what is left, …"""
        source, match = f"{self._table.ip} saddr", f"meta l4proto {self._protocol}"
        notes = [f"update @{self._clients(e)} {{ {source} }} dnat to {e}" for e in endpoints]
        for endpoint, note in zip(endpoints, notes, strict=True):
            yield f"{match} {source} @{self._clients(endpoint)} {note}"
        for left, note in zip(range(len(endpoints), 0, -1), notes, strict=True):
            chance = f"numgen random mod {left} 0 " if left > 1 else ""
            yield f"{match} {chance}{note}"

    def _clients(self, endpoint: Endpoint) -> str:
        """The set of the clients that stick to this endpoint; another time is another set."""
        seconds = self._port.affinity_s
        name = f"clients-{seconds}-{digest(f'{self._identity} {endpoint}', 12)}"
        self.sets[name] = NftSet(self._table.address, flags=f"{DYNAMIC}{seconds}s")
        return name

    def _allowed(self) -> list[str]:
        """Who may use the load balancer; where the node may, so may its own way to the balancer's address."""
        port = self._port
        ranges = [ipaddress.ip_network(text) for text in port.source_ranges]
        node_may = any(ipaddress.ip_address(ip) in network for ip in self._config.node_ips for network in ranges)
        own = [ipaddress.ip_network(whole(ip)) for ip in port.load_balancer_ips if node_may]
        return [str(network) for network in ipaddress.collapse_addresses([*ranges, *own])]  # type: ignore[type-var]
