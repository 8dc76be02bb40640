"""The host's addresses, as netlink tells them, and which of them have node ports (--nodeport-addresses)."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from kone.net.netlink import NETLINK_ROUTE, Message, Netlink, address_text, attributes

RTM_GETADDR = 22
IFA_ADDRESS, IFA_LOCAL = 1, 2
EVERYWHERE = {4: "0.0.0.0", 6: "::"}


class HostAddress(NamedTuple):
    """An address, the number of its link and how far it reaches (RT_SCOPE_…)."""

    ip: str
    link: int
    scope: int


def each_address(netlink: Netlink, inet: int = socket.AF_UNSPEC) -> Iterator[HostAddress]:
    """Every address of that family, or of both, in the namespace of the socket. Raises OSError."""
    request = Message(RTM_GETADDR, 0, struct.pack("BBBBI", inet, 0, 0, 0, 0))
    for _, body in netlink.dump(request):
        _, _, _, scope, link = struct.unpack_from("BBBBI", body)
        parts = attributes(body, 8)
        if data := parts.get(IFA_LOCAL) or parts.get(IFA_ADDRESS):
            yield HostAddress(address_text(data), link, scope)


def host_ips() -> list[str]:
    """All addresses of the host, loopback's among them. Raises OSError."""
    netlink = Netlink(NETLINK_ROUTE)
    try:
        return [address.ip for address in each_address(netlink)]
    finally:
        netlink.close()


def listening_addresses(cidrs: Sequence[str], families: Collection[int], ips: Collection[str]) -> list[str]:
    """Where to listen for what node ports' addresses have: those of `ips` within the ranges, sorted; of a family that
    the ranges do not name, or name as a whole, everywhere.
    """
    networks = [ipaddress.ip_network(cidr) for cidr in cidrs]
    found: list[str] = []
    for family in sorted(families):
        mine = [network for network in networks if network.version == family]
        if not mine or any(network.prefixlen == 0 for network in mine):
            found.append(EVERYWHERE[family])
        else:
            found += sorted({ip for ip in ips if any(ipaddress.ip_address(ip) in network for network in mine)})
    return found
