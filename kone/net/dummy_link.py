"""The link that makes Services' addresses the host's own, so that IPVS sees what is sent to them.

It carries no packets. Addresses come and go by the thousand, so they are packed by hand (netlink.py).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterable
from pathlib import Path

from kone.net.host_addresses import IFA_ADDRESS, IFA_LOCAL, each_address
from kone.net.netlink import (
    NETLINK_ROUTE,
    NLM_F_CREATE,
    NLM_F_EXCL,
    Message,
    Netlink,
    attribute,
    nested,
    packed_address,
    text,
)

RTM_NEWLINK, RTM_DELLINK, RTM_NEWADDR, RTM_DELADDR = 16, 17, 20, 21
IFLA_IFNAME, IFLA_LINKINFO, IFLA_INFO_KIND = 3, 18, 1
IFA_FLAGS = 8
IFA_F_NODAD = 0x2
IFF_UP = 0x1
SCOPE_UNIVERSE = 0


class DummyLink:
    """One such link in the calling thread's namespace; `kind` "bridge" where the kernel may have no dummies. Raises
    OSError.
    """

    def __init__(self, name: str, family: int, kind: str = "dummy") -> None:
        self.name = name
        self._kind = kind
        self._inet = socket.AF_INET if family == 4 else socket.AF_INET6
        self._netlink = Netlink(NETLINK_ROUTE)

    def close(self) -> None:
        self._netlink.close()

    @property
    def index(self) -> int:
        """The link's number; 0 where it is not there."""
        try:
            return socket.if_nametoindex(self.name)
        except OSError:
            return 0

    def ensure(self) -> None:
        """Make it, up, unless it is there."""
        if not self.index:
            kind = nested(IFLA_LINKINFO, text(IFLA_INFO_KIND, self._kind))
            body = _link(0, 0) + text(IFLA_IFNAME, self.name) + kind
            (number,) = self._netlink.request([Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)])
            if number not in (0, errno.EEXIST):
                raise OSError(number, f"making link {self.name}: {os.strerror(number)}")
            with contextlib.suppress(OSError):  # no address of its own, where /proc/sys can be written
                Path(f"/proc/sys/net/ipv6/conf/{self.name}/addr_gen_mode").write_text("1")
        (number,) = self._netlink.request([Message(RTM_NEWLINK, 0, _link(self.index, IFF_UP))])
        if number:
            raise OSError(number, f"bringing link {self.name} up: {os.strerror(number)}")

    def change(self, added: Iterable[str], removed: Iterable[str]) -> dict[str, int]:
        """Give it addresses and take others from it; the errno of each that the kernel refused."""
        index = self.index
        pairs = [(ip, self._message(RTM_NEWADDR, index, ip), errno.EEXIST) for ip in added]
        pairs += [(ip, self._message(RTM_DELADDR, index, ip), errno.EADDRNOTAVAIL) for ip in removed]
        numbers = self._netlink.request([message for _, message, _ in pairs])
        return {
            ip: number for (ip, _, pardoned), number in zip(pairs, numbers, strict=True) if number not in (0, pardoned)
        }

    def addresses(self) -> set[str]:
        """What addresses of the family it has."""
        index = self.index
        every = each_address(self._netlink, self._inet)
        return {ip for ip, link, scope in every if link == index and scope == SCOPE_UNIVERSE}

    def host_addresses(self) -> set[str]:
        """The host's other addresses of the family at which it can be reached."""
        index = self.index
        every = each_address(self._netlink, self._inet)
        return {ip for ip, link, scope in every if link != index and scope == SCOPE_UNIVERSE}

    def delete_unused(self) -> None:
        """Remove it unless it has addresses, which are the other family's by then."""
        index = self.index
        if not any(link == index and scope == SCOPE_UNIVERSE for _, link, scope in each_address(self._netlink)):
            self.delete()

    def delete(self) -> None:
        if index := self.index:
            (number,) = self._netlink.request([Message(RTM_DELLINK, 0, _link(index, 0))])
            if number not in (0, errno.ENODEV):
                raise OSError(number, f"removing link {self.name}: {os.strerror(number)}")

    def _message(self, kind: int, index: int, ip: str) -> Message:
        address = packed_address(ip)
        body = struct.pack("BBBBI", self._inet, 8 * len(address), 0, SCOPE_UNIVERSE, index)
        body += attribute(IFA_LOCAL, address) + attribute(IFA_ADDRESS, address)
        if self._inet == socket.AF_INET6:
            body += attribute(IFA_FLAGS, struct.pack("I", IFA_F_NODAD))
        return Message(kind, NLM_F_CREATE | NLM_F_EXCL if kind == RTM_NEWADDR else 0, body)


def why_not() -> str:
    """What keeps this host from such a link, "" where nothing does."""
    link = DummyLink(f"kdummy{os.getpid() % 100000}", 4)
    try:
        link.ensure()
        link.delete()
    except OSError as error:
        return f"dummy links: {error.strerror}"
    finally:
        link.close()
    return ""


def _link(index: int, up: int) -> bytes:
    return struct.pack("BBHiII", socket.AF_UNSPEC, 0, 0, index, up, up)
