"""Sets of addresses and ports that iptables rules ask, by netlink.

One rule asks whether a packet's destination is in a set, however many Services there are, and a Service that comes is
one element more. Numbers are those of the kernel's uapi linux/netfilter/ipset/ip_set.h.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from kone.net.netlink import (
    NETLINK_NETFILTER,
    NLA_F_NET_BYTEORDER,
    NLM_F_CREATE,
    Message,
    Netlink,
    address_text,
    attribute,
    attributes,
    each_attribute,
    nested,
    packed_address,
    text,
)

SUBSYSTEM = 6 << 8
CREATE, DESTROY, LIST, ADD, DELETE = 2, 3, 7, 9, 10
A_PROTOCOL, A_SETNAME, A_TYPENAME, A_REVISION, A_FAMILY, A_FLAGS, A_DATA, A_ADT, A_LINENO = 1, 2, 3, 4, 5, 6, 7, 8, 9
D_IP, D_PORT, D_PROTO, D_MAXELEM, D_ELEMENTS, D_IP2, D_CIDR2 = 1, 4, 7, 19, 24, 20, 21
FLAG_LIST_HEADER = 1 << 2
PROTOCOL = 6
MAX_ELEMENTS = 1 << 20
NAME_MAX = 31  # IPSET_MAXNAMELEN - 1
REASONS = {4100: "a rule still asks it", 4102: "one of another type has that name", 4352: "it is full"}

SetType = Literal["hash:ip", "hash:ip,port", "hash:ip,port,ip", "hash:ip,port,net"]


class Element(NamedTuple):
    """One element; `protocol` and `port` are 0, `peer` is "" where the set's type has none. `peer` may be a network."""

    ip: str
    protocol: int = 0
    port: int = 0
    peer: str = ""


@dataclass(frozen=True, slots=True)
class SetSpec:
    """A set as it shall be made."""

    name: str
    type: SetType
    family: int  # 4 or 6


class IpSets:
    """The sets of one network namespace. Raises OSError."""

    def __init__(self) -> None:
        self._netlink = Netlink(NETLINK_NETFILTER)

    def close(self) -> None:
        self._netlink.close()

    def ensure(self, specs: Iterable[SetSpec]) -> None:
        """Make those that are not there. A set of that name and another type is an OSError."""
        for spec in specs:
            inet = 2 if spec.family == 4 else 10
            size = attribute(D_MAXELEM | NLA_F_NET_BYTEORDER, struct.pack(">I", MAX_ELEMENTS))
            body = _header(inet) + _name(spec.name) + text(A_TYPENAME, spec.type)
            body += attribute(A_REVISION, b"\0") + attribute(A_FAMILY, bytes([inet])) + nested(A_DATA, size)
            (number,) = self._netlink.request([Message(SUBSYSTEM | CREATE, NLM_F_CREATE, body)])
            _check(number, f"making ipset {spec.name}")

    def change(self, added: Mapping[str, Iterable[Element]], removed: Mapping[str, Iterable[Element]]) -> None:
        """Put elements into sets and take others out, by the sets' names; those that are so already are no error."""
        messages = [_element(ADD, name, e) for name, elements in added.items() for e in elements]
        messages += [_element(DELETE, name, e) for name, elements in removed.items() for e in elements]
        for message, number in zip(messages, self._netlink.request(messages), strict=True):
            _check(number, "adding to an ipset" if message.kind & 0xFF == ADD else "removing from an ipset")

    def names(self) -> dict[str, int]:
        """How many elements each set has, by name, of all sets."""
        flags = attribute(A_FLAGS | NLA_F_NET_BYTEORDER, struct.pack(">I", FLAG_LIST_HEADER))
        found: dict[str, int] = {}
        for _, body in self._netlink.dump(Message(SUBSYSTEM | LIST, 0, _header(2) + flags)):
            parts = attributes(body, 4)
            data = attributes(parts.get(A_DATA, b""))
            count = struct.unpack(">I", data[D_ELEMENTS])[0] if D_ELEMENTS in data else 0
            found[_string(parts[A_SETNAME])] = count
        return found

    def elements(self, name: str) -> set[Element]:
        """What is in the set; nothing where there is none."""
        found: set[Element] = set()
        try:
            for _, body in self._netlink.dump(Message(SUBSYSTEM | LIST, 0, _header(2) + _name(name))):
                for _, data in each_attribute(attributes(body, 4).get(A_ADT, b"")):
                    found.add(_read(attributes(data)))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
        return found

    def destroy(self, names: Iterable[str]) -> None:
        """Remove sets that no rule asks any more; those that are not there are no error."""
        for name in names:
            (number,) = self._netlink.request([Message(SUBSYSTEM | DESTROY, 0, _header(2) + _name(name))])
            if number != errno.ENOENT:
                _check(number, f"removing ipset {name}")


def why_not() -> str:
    """What keeps this host from ipset, "" where nothing does."""
    sets = IpSets()
    try:
        sets.names()
    except OSError as error:
        return f"ipset: {error.strerror}"
    finally:
        sets.close()
    return ""


def _header(inet: int) -> bytes:
    return struct.pack("BBH", inet, 0, 0) + attribute(A_PROTOCOL, bytes([PROTOCOL]))


def _name(name: str) -> bytes:
    return text(A_SETNAME, name)


def _element(command: int, name: str, element: Element) -> Message:
    data = _ip(D_IP, element.ip)
    if element.protocol:
        data += attribute(D_PORT | NLA_F_NET_BYTEORDER, struct.pack(">H", element.port))
        data += attribute(D_PROTO, bytes([element.protocol]))
    if element.peer:
        ip, _, length = element.peer.partition("/")
        data += _ip(D_IP2, ip)
        if length:
            data += attribute(D_CIDR2, bytes([int(length)]))
    data += attribute(A_LINENO | NLA_F_NET_BYTEORDER, struct.pack(">I", 0))
    inet = 10 if ":" in element.ip else 2
    return Message(SUBSYSTEM | command, 0, _header(inet) + _name(name) + nested(A_DATA, data))


def _ip(kind: int, ip: str) -> bytes:
    return nested(kind, attribute((2 if ":" in ip else 1) | NLA_F_NET_BYTEORDER, packed_address(ip)))


def _read(data: dict[int, bytes]) -> Element:
    peer = ""
    if D_IP2 in data:
        peer = _address_in(data[D_IP2])
        if D_CIDR2 in data:
            peer += f"/{data[D_CIDR2][0]}"
    port = struct.unpack(">H", data[D_PORT])[0] if D_PORT in data else 0
    return Element(_address_in(data[D_IP]), data[D_PROTO][0] if D_PROTO in data else 0, port, peer)


def _address_in(data: bytes) -> str:
    ((_, address),) = each_attribute(data)
    return address_text(address)


def _string(data: bytes) -> str:
    return data.rstrip(b"\0").decode()


def _check(number: int, doing: str) -> None:
    if number:
        reason = REASONS.get(number) or os.strerror(number)
        raise OSError(number, f"{doing}: {reason}")
