"""NetworkPolicies become the contents of one nftables table. Pure: policies, pods and namespaces in, a Ruleset out.

Both directions are judged in POSTROUTING, where every packet from or to a pod has its real addresses, whichever proxier
rewrote it (IPVS sends on from INPUT, past FORWARD). Two base chains, one a direction: an `accept` ends one direction's
judgement, the other has still its say.

    judge-DIRECTION      established -> accept; from the node itself -> accept; a pod to itself -> accept;
                         by pod address in a verdict map -> of-…
    of-DIRECTION-x       for each set of policies that pods are selected by: jump to each of them, then drop
    by-DIRECTION-y       for each policy: an accept for each of its rules, by sets of peers and ports

Pods that the same policies select share one chain, and peers that several policies name share one set, so that a pod
that comes or goes is some elements of sets and no rule. A named port is a set of (pod address, port): it has the
meaning that the destination gives it, in both directions.
"""

from __future__ import annotations

import ipaddress
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from kone.apimachinery.objects import Object, is_pod_terminal, key_of, labels_of, name_of, namespace_of
from kone.apimachinery.selectors import from_label_selector
from kone.net.names import digest
from kone.net.nft_ruleset import NftSet, Ruleset

Direction = Literal["ingress", "egress"]
Labels = Mapping[str, str]

# Before masquerading (srcnat, 100) takes the source's address away. Egress first, so that its drops are the first.
HOOK = "type filter hook postrouting priority {}; policy accept;"
PRIORITIES: Mapping[Direction, int] = {"egress": 50, "ingress": 51}
PEER_TYPES: Mapping[Direction, str] = {"ingress": "from", "egress": "to"}
PEER_FIELD: Mapping[Direction, str] = {"ingress": "saddr", "egress": "daddr"}
POD_FIELD: Mapping[Direction, str] = {"ingress": "daddr", "egress": "saddr"}
ADDRESS = {4: "ipv4_addr", 6: "ipv6_addr"}
FAMILY = {4: "ip", 6: "ip6"}
COMMENT_MAX = 120
NAME_DIGITS = 12


class NamedPort(NamedTuple):
    """A port that a container gave a name."""

    name: str
    protocol: str  # "tcp", "udp", "sctp"
    number: int


@dataclass(frozen=True, slots=True)
class PodFacts:
    """What policies look at of a pod that has addresses of its own."""

    namespace: str
    labels: Labels
    ips: tuple[str, ...]
    ports: frozenset[NamedPort]
    here: bool  # on this node: its traffic is judged here


class Match(NamedTuple):
    """A condition of a rule; `version` is the family that it speaks of, 0 for both."""

    version: int
    text: str


ANYTHING = Match(0, "")


def pod_facts(pod: Object, node_name: str, ips: Sequence[str] = ()) -> PodFacts | None:
    """The facts of a pod; None for one that no policy concerns: on the host's network, ended, or without an address.

    `ips`: its addresses where they are known before its status tells them.
    """
    spec = pod.get("spec") or {}
    status = pod.get("status") or {}
    if spec.get("hostNetwork") or is_pod_terminal(pod):
        return None
    addresses = tuple(ips) or tuple(entry["ip"] for entry in status.get("podIPs") or () if entry.get("ip"))
    if not addresses:
        return None
    sidecars = [c for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always"]
    ports = frozenset(
        NamedPort(port["name"], (port.get("protocol") or "TCP").lower(), port["containerPort"])
        for container in (*(spec.get("containers") or ()), *sidecars)
        for port in container.get("ports") or ()
        if port.get("name")
    )
    return PodFacts(namespace_of(pod), labels_of(pod), addresses, ports, spec.get("nodeName") == node_name)


def directions_of(policy: Object) -> set[Direction]:
    """The directions in which a policy isolates the pods that it selects."""
    spec = policy.get("spec") or {}
    if types := spec.get("policyTypes"):
        return {direction for direction in PRIORITIES if direction.capitalize() in types}
    return {"ingress", "egress"} if spec.get("egress") else {"ingress"}


def ruleset_of(
    policies: Iterable[Object], pods: Iterable[PodFacts], namespaces: Mapping[str, Labels]
) -> Ruleset | None:
    """The table's content; None where no policy is. `namespaces`: the labels of each."""
    policies = sorted(policies, key=key_of)
    return _Compiler(list(pods), namespaces).compile(policies) if policies else None


@dataclass(slots=True)
class _Compiler:
    """One compilation: what it has made so far."""

    pods: Sequence[PodFacts]
    namespaces: Mapping[str, Labels]
    by_namespace: dict[str, list[PodFacts]] = field(default_factory=lambda: defaultdict(list))
    sets: dict[str, NftSet] = field(default_factory=dict)
    chains: dict[str, Sequence[str]] = field(default_factory=dict)
    named: dict[tuple[str, str], list[tuple[str, int]]] = field(default_factory=lambda: defaultdict(list))

    def compile(self, policies: Sequence[Object]) -> Ruleset:
        for pod in self.pods:
            self.by_namespace[pod.namespace].append(pod)
            for port in pod.ports:
                self.named[port.name, port.protocol] += [(ip, port.number) for ip in pod.ips]
        selecting: dict[Direction, dict[str, list[Object]]] = {"egress": {}, "ingress": {}}
        for policy in policies:
            directions = directions_of(policy)
            selector = from_label_selector((policy.get("spec") or {}).get("podSelector") or {})
            addresses = [
                ip
                for pod in self.by_namespace.get(namespace_of(policy), ())
                if pod.here and selector.matches(pod.labels)
                for ip in pod.ips
            ]
            for direction in directions if addresses else ():
                for ip in addresses:
                    selecting[direction].setdefault(ip, []).append(policy)
                self.chains[_policy_chain(direction, policy)] = tuple(self._policy_rules(direction, policy))
        isolated = selecting["egress"].keys() | selecting["ingress"].keys()
        for version, address in ADDRESS.items():
            own = {f"{ip} . {ip}": "" for ip in sorted(isolated) if _version(ip) == version}
            self.sets[f"self{version}"] = NftSet(f"{address} . {address}", own)
            for direction, pods in selecting.items():
                verdicts = {
                    ip: f"goto {self._pods_chain(direction, found)}"
                    for ip, found in pods.items()
                    if _version(ip) == version
                }
                self.sets[f"pods{version}-{direction}"] = NftSet(f"{address} : verdict", verdicts)
        bases = {}
        for direction, priority in PRIORITIES.items():
            bases[f"judge-{direction}"] = HOOK.format(priority)
            self.chains[f"judge-{direction}"] = tuple(_base_rules(direction))
        return Ruleset(self.sets, self.chains, bases)

    def _pods_chain(self, direction: Direction, policies: Sequence[Object]) -> str:
        """The chain of the pods that exactly these policies select."""
        name = f"of-{direction}-{digest(' '.join(map(_label, policies)), NAME_DIGITS)}"
        if name not in self.chains:
            jumps = [f"jump {_policy_chain(direction, p)} comment {_comment(_label(p))}" for p in policies]
            self.chains[name] = (*jumps, "drop")
        return name

    def _policy_rules(self, direction: Direction, policy: Object) -> Iterator[str]:
        for rule in (policy.get("spec") or {}).get(direction) or ():
            peers = rule.get(PEER_TYPES[direction]) or ()
            matches = list(self._peers(direction, namespace_of(policy), peers)) if peers else [ANYTHING]
            ports = list(self._ports(rule["ports"])) if rule.get("ports") else [ANYTHING]
            for peer in matches:
                for port in ports:
                    if 0 in (peer.version, port.version) or peer.version == port.version:
                        yield " ".join(word for word in (port.text, peer.text, "accept") if word)

    # Peers

    def _peers(self, direction: Direction, namespace: str, peers: Iterable[Object]) -> Iterator[Match]:
        blocks: list[Object] = []
        for peer in peers:
            if (block := peer.get("ipBlock")) is not None:
                blocks.append(block)
            else:
                yield from self._selected(direction, namespace, peer)
        for version, ranges in _ranges_of(blocks).items():
            if ranges:
                yield Match(version, _among(f"{FAMILY[version]} {PEER_FIELD[direction]}", ranges, version))

    def _selected(self, direction: Direction, namespace: str, peer: Object) -> Iterator[Match]:
        """The sets of what a peer's selectors select: pods of the policy's own namespace, or of those selected."""
        spaces, pods = peer.get("namespaceSelector"), peer.get("podSelector")
        scope = json.dumps([namespace if spaces is None else None, spaces, pods or {}], sort_keys=True)
        name = digest(scope, NAME_DIGITS)
        if f"peers4-{name}" not in self.sets:
            selector = from_label_selector(pods or {})
            if spaces is None:
                within = [namespace]
            else:
                wanted = from_label_selector(spaces)
                within = [n for n, labels in self.namespaces.items() if wanted.matches(labels)]
            found: dict[int, dict[str, str]] = {4: {}, 6: {}}
            for space in within:
                for pod in self.by_namespace.get(space, ()):
                    if selector.matches(pod.labels):
                        for ip in pod.ips:
                            found[_version(ip)][ip] = ""
            for version, elements in found.items():
                self.sets[f"peers{version}-{name}"] = NftSet(ADDRESS[version], elements)
        for version in ADDRESS:
            yield Match(version, f"{FAMILY[version]} {PEER_FIELD[direction]} @peers{version}-{name}")

    # Ports

    def _ports(self, ports: Iterable[Object]) -> Iterator[Match]:
        numbers: dict[str, list[tuple[int, int]]] = {}
        for port in ports:
            protocol = (port.get("protocol") or "TCP").lower()
            wanted = port.get("port")
            if isinstance(wanted, str):
                yield from self._named(wanted, protocol)
            else:
                first, last = (0, 65535) if wanted is None else (wanted, port.get("endPort") or wanted)
                numbers.setdefault(protocol, []).append((first, last))
        for protocol, ranges in numbers.items():
            merged = _merged(ranges)
            if merged == [(0, 65535)]:
                yield Match(0, f"meta l4proto {protocol}")
            else:
                yield Match(0, f"meta l4proto {protocol} th dport {{ {', '.join(map(_span, merged))} }}")

    def _named(self, name: str, protocol: str) -> Iterator[Match]:
        owners = self.named.get((name, protocol), ())
        for version, family in FAMILY.items():
            set_name = f"port{version}-{protocol}-{name}"
            if set_name not in self.sets:
                elements = {f"{ip} . {number}": "" for ip, number in owners if _version(ip) == version}
                self.sets[set_name] = NftSet(f"{ADDRESS[version]} . inet_service", elements)
            yield Match(version, f"meta l4proto {protocol} {family} daddr . th dport @{set_name}")


def _base_rules(direction: Direction) -> Iterator[str]:
    yield "ct state established,related accept"
    yield "fib saddr type local accept"
    for version, family in FAMILY.items():
        yield f"{family} saddr . {family} daddr @self{version} accept"
        yield f"{family} {POD_FIELD[direction]} vmap @pods{version}-{direction}"


def _policy_chain(direction: Direction, policy: Object) -> str:
    return f"by-{direction}-{digest(_label(policy), NAME_DIGITS)}"


def _label(policy: Object) -> str:
    return f"{namespace_of(policy)}/{name_of(policy)}"


def _comment(text: str) -> str:
    return f'"{text[:COMMENT_MAX]}"'


def _version(ip: str) -> int:
    return 6 if ":" in ip else 4


def _ranges_of(blocks: Iterable[Object]) -> dict[int, list[tuple[int, int]]]:
    """The addresses of ipBlocks, each without its exceptions, as disjoint ranges by family."""
    ranges: dict[int, list[tuple[int, int]]] = {4: [], 6: []}
    for block in blocks:
        network = ipaddress.ip_network(block["cidr"], strict=False)
        first = int(network.network_address)
        for low, high in _merged(_bounds(cidr) for cidr in block.get("except") or ()):
            if low > first:
                ranges[network.version].append((first, low - 1))
            first = high + 1
        if first <= int(network.broadcast_address):
            ranges[network.version].append((first, int(network.broadcast_address)))
    return {version: _merged(found) for version, found in ranges.items()}


def _bounds(cidr: str) -> tuple[int, int]:
    network = ipaddress.ip_network(cidr, strict=False)
    return int(network.network_address), int(network.broadcast_address)


def _merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same numbers in disjoint ranges, in order."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(last, found[-1][1])
        else:
            found.append((first, last))
    return found


def _span(numbers: tuple[int, int]) -> str:
    return f"{numbers[0]}-{numbers[1]}" if numbers[0] != numbers[1] else str(numbers[0])


def _among(where: str, ranges: Sequence[tuple[int, int]], version: int) -> str:
    last = 2 ** (32 if version == 4 else 128) - 1
    if list(ranges) == [(0, last)]:
        return f"meta nfproto ipv{version}"
    address = ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address
    spans = [str(address(low)) if low == high else f"{address(low)}-{address(high)}" for low, high in ranges]
    return f"{where} {{ {', '.join(spans)} }}"
