"""What the rules of one address family depend on beside the Services: the same for every proxier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from kone.net.names import Names

MASQUERADE_BIT = 0x4000  # of the packet's mark; the bit that kube-proxy uses
ACCEPTED_BIT = 0x2000  # a new connection to the host that kone has accepted, for firewalls that judge after it


@dataclass(frozen=True, slots=True)
class RuleConfig:
    """One family's ranges and addresses."""

    names: Names
    cluster_cidrs: Sequence[str]  # pods: their traffic keeps its source address
    service_cidrs: Sequence[str]  # what is sent here and is no Service's is refused
    node_ips: Sequence[str] = ()
    pod_cidrs: Sequence[str] = ()  # the pods of this node: they can reach themselves; () is all pods
    ipvs_scheduler: str = "rr"
    strict_arp: bool = False  # with IPVS: no link answers ARP for another link's addresses
    node_port_cidrs: Sequence[str] = ()  # which of the host's addresses have node ports; () is all of them

    @property
    def family(self) -> int:
        """4 or 6."""
        return 6 if any(":" in cidr for cidr in (*self.service_cidrs, *self.cluster_cidrs)) else 4

    def has_node_ports(self, ip: str) -> bool:
        """Whether this address of the host's has node ports."""
        return not self.node_port_cidrs or any(ip_address(ip) in ip_network(cidr) for cidr in self.node_port_cidrs)


def any_config(names: Names, family: int) -> RuleConfig:
    """What finds an instance's rules of a family, whatever its ranges were."""
    every = "::/0" if family == 6 else "0.0.0.0/0"
    return RuleConfig(names, [every], [every])


def whole(ip: str) -> str:
    """The address as a range of one."""
    return f"{ip}/{128 if ':' in ip else 32}"
