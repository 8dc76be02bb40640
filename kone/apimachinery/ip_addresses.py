"""What an IPAddress says of a Service, and what lies in which range: shared by the allocators, which make IPAddresses,
and the controllers that look after them.

Source of the rules: k8s.io/kubernetes, registry/core/service/ipallocator and api/servicecidr.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

from kone.apimachinery.objects import Object, dig, labels_of, name_of, namespace_of

MANAGER: Final = "ipallocator.k8s.io"
MANAGED_BY: Final = "ipaddress.kubernetes.io/managed-by"
FAMILY: Final = "ipaddress.kubernetes.io/ip-family"

Family = Literal["IPv4", "IPv6"]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def ip_address_of(service: Mapping[str, Any], ip: str) -> Object:
    """The IPAddress of one of the service's cluster IPs, which is given in canonical form."""
    parent = {"resource": "services", "namespace": namespace_of(service), "name": name_of(service)}
    labels = {FAMILY: family_of(ip), MANAGED_BY: MANAGER}
    return {
        "kind": "IPAddress",
        "apiVersion": "networking.k8s.io/v1",
        "metadata": {"name": ip, "labels": labels},
        "spec": {"parentRef": parent},
    }


def cluster_ips(service: Mapping[str, Any]) -> list[str]:
    """The cluster IPs of a service in canonical form; none for headless services and external names."""
    spec = service.get("spec") or {}
    texts = spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else [])
    return [str(ipaddress.ip_address(text)) for text in texts if text not in ("", "None")]


def family_of(text: str) -> Family:
    """Of an address or a range."""
    return "IPv6" if ":" in text else "IPv4"


def is_managed(address: Mapping[str, Any]) -> bool:
    """Whether the allocators made it: others' IPAddresses are left alone."""
    return labels_of(address).get(MANAGED_BY) == MANAGER


def labels_match(address: Mapping[str, Any]) -> bool:
    """Whether its labels are those that the allocators give it."""
    return is_managed(address) and labels_of(address).get(FAMILY) == family_of(name_of(address))


def networks_of(service_cidr: Mapping[str, Any]) -> list[Network]:
    return [ipaddress.ip_network(cidr) for cidr in dig(service_cidr, "spec", "cidrs", default=())]


def containing(service_cidrs: Iterable[Object], ip: str) -> list[Object]:
    """The ServiceCIDRs that can give the address: the network's own and an IPv4 broadcast address belong to none."""
    address = ipaddress.ip_address(ip)
    return [one for one in service_cidrs if any(_gives(network, address) for network in networks_of(one))]


def _gives(network: Network, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if network.version != address.version or address not in network or address == network.network_address:
        return False
    return network.version == 6 or address != network.broadcast_address


def covering(service_cidrs: Iterable[Object], network: Network) -> list[Object]:
    """The ServiceCIDRs with a network that has all of this one."""
    return [
        one
        for one in service_cidrs
        if any(
            mine.version == network.version and mine.prefixlen <= network.prefixlen and network.network_address in mine
            for mine in networks_of(one)
        )
    ]


def overlapping(service_cidrs: Iterable[Object], networks: Iterable[Network]) -> list[Object]:
    """The ServiceCIDRs that share an address with one of the networks."""
    wanted = list(networks)
    return [
        one
        for one in service_cidrs
        if any(a.version == b.version and a.overlaps(b) for a in networks_of(one) for b in wanted)
    ]
