"""Forgetting UDP flows that lead to where they no longer should: connection tracking by netlink.

A UDP flow's rewriting is decided by its first datagram and holds as long as datagrams come. So when a Service's
endpoints change, flows to endpoints that are gone, or that began when there were none, are deleted; the next datagram
is then decided anew.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

NETLINK_NETFILTER = 12
CTNETLINK = 1 << 8
CT_GET, CT_DELETE = CTNETLINK | 1, CTNETLINK | 2
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLA_F_NESTED = 0x8000
CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_FILTER = 1, 2, 25
CTA_TUPLE_IP, CTA_TUPLE_PROTO = 1, 2
CTA_IP_SRC, CTA_IP_DST = {4: 1, 6: 3}, {4: 2, 6: 4}
CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT = 1, 2, 3
FILTER_PROTO_NUM = 1 << 3  # CTA_FILTER_F_CTA_PROTO_NUM: compare this field of the tuple only


class Address(NamedTuple):
    """An address and port; ip "" is any address whose flows are led elsewhere: a node port's."""

    ip: str
    port: int


class Flow(NamedTuple):
    """Where the client sent to, who answers it, and the tuple that names the flow to the kernel."""

    sent_to: Address
    answered_by: Address
    tuple_orig: bytes


Frontends = Mapping[Address, Collection[Address]]
"""The endpoints that each address of a Service may lead to now."""


def forget_stale_udp(frontends: Frontends, family: int = 4) -> int:
    """Delete the UDP flows to these addresses that lead to none of their endpoints; how many. Raises OSError.

    Blocks for as long as the kernel's table takes to read.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER) as netlink:
        netlink.bind((0, 0))
        stale = [flow for flow in _flows(netlink, family) if is_stale(flow, frontends)]
        for flow in stale:
            message = _attribute(CTA_TUPLE_ORIG | NLA_F_NESTED, flow.tuple_orig)
            _send(netlink, CT_DELETE, NLM_F_REQUEST | NLM_F_ACK, family, message)
            for kind, body in _answers(netlink):
                error = -struct.unpack_from("i", body)[0] if kind == NLMSG_ERROR else 0
                if error not in (0, 2):  # ENOENT: it ended by itself
                    raise OSError(error, "deleting a tracked connection")
                break
    return len(stale)


def is_stale(flow: Flow, frontends: Frontends) -> bool:
    """Whether the flow goes to one of the addresses, but is not answered by an endpoint of it."""
    endpoints = frontends.get(flow.sent_to)
    if endpoints is None and flow.answered_by != flow.sent_to:
        endpoints = frontends.get(Address("", flow.sent_to.port))
    return endpoints is not None and flow.answered_by not in endpoints


def _flows(netlink: socket.socket, family: int) -> Iterator[Flow]:
    proto = _attribute(CTA_PROTO_NUM, bytes([socket.IPPROTO_UDP]))
    wanted = _attribute(CTA_TUPLE_ORIG | NLA_F_NESTED, _attribute(CTA_TUPLE_PROTO | NLA_F_NESTED, proto))
    flags = _attribute(1, struct.pack("I", FILTER_PROTO_NUM))  # CTA_FILTER_ORIG_FLAGS
    _send(netlink, CT_GET, NLM_F_REQUEST | NLM_F_DUMP, family, wanted + _attribute(CTA_FILTER | NLA_F_NESTED, flags))
    for kind, body in _answers(netlink):
        if kind == NLMSG_DONE:
            return
        if kind == NLMSG_ERROR:
            raise OSError(-struct.unpack_from("i", body)[0], "reading tracked connections")
        attributes = dict(_attributes(body[4:]))
        orig, reply = attributes[CTA_TUPLE_ORIG], attributes[CTA_TUPLE_REPLY]
        if _protocol(orig) == socket.IPPROTO_UDP:
            sent_to = _end(orig, family, CTA_IP_DST, CTA_PROTO_DST_PORT)
            yield Flow(sent_to, _end(reply, family, CTA_IP_SRC, CTA_PROTO_SRC_PORT), orig)


def _end(data: bytes, family: int, address: Mapping[int, int], port: int) -> Address:
    parts = dict(_attributes(data))
    packed = dict(_attributes(parts[CTA_TUPLE_IP]))[address[family]]
    number = dict(_attributes(parts[CTA_TUPLE_PROTO])).get(port, b"\0\0")
    inet = socket.AF_INET if family == 4 else socket.AF_INET6
    return Address(socket.inet_ntop(inet, packed), struct.unpack(">H", number)[0])


def _protocol(data: bytes) -> int:
    return dict(_attributes(dict(_attributes(data))[CTA_TUPLE_PROTO]))[CTA_PROTO_NUM][0]


def _send(netlink: socket.socket, kind: int, flags: int, family: int, attributes: bytes) -> None:
    inet = socket.AF_INET if family == 4 else socket.AF_INET6
    body = struct.pack("BBH", inet, 0, 0) + attributes
    netlink.send(struct.pack("IHHII", 16 + len(body), kind, flags, 1, 0) + body)


def _answers(netlink: socket.socket) -> Iterator[tuple[int, bytes]]:
    """Messages as (type, what follows the header)."""
    while True:
        data = netlink.recv(1 << 17)
        offset = 0
        while offset + 16 <= len(data):
            length, kind = struct.unpack_from("IH", data, offset)
            yield kind, data[offset + 16 : offset + length]
            offset += (length + 3) & ~3


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("HH", data, offset)
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += max(4, (length + 3) & ~3)
