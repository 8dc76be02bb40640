"""Netlink messages packed by hand, many in one call: what costs time by the thousand (IPVS, ipset, addresses).

pyroute2 takes 0.27 ms to encode one IPVS message, which for 5,000 Services is 5 s of a first sync; packed so, it is a
fiftieth of that. Everything that is done once or seldom (links, namespaces) stays with pyroute2 in links.py.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

NETLINK_ROUTE, NETLINK_NETFILTER, NETLINK_GENERIC = 0, 12, 16
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP, NLM_F_EXCL, NLM_F_CREATE = 0x1, 0x4, 0x300, 0x200, 0x400
NLMSG_NOOP, NLMSG_ERROR, NLMSG_DONE = 1, 2, 3
NLA_F_NESTED, NLA_F_NET_BYTEORDER = 0x8000, 0x4000
SOL_NETLINK, NETLINK_EXT_ACK, NETLINK_CAP_ACK = 270, 11, 10
BATCH = 200  # messages of one send: their answers must fit the socket's buffer
RECEIVE = 1 << 17


class Message(NamedTuple):
    """A request: its type, further flags, and what follows nlmsghdr (the family's header and attributes)."""

    kind: int
    flags: int
    body: bytes


class Netlink:
    """One socket of the calling thread's network namespace. Calls block for as long as the kernel works."""

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.bind((0, 0))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)  # errors without the message that they answer
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def request(self, messages: Sequence[Message]) -> list[int]:
        """Do all of them, in order, whatever becomes of each; the errno of each, 0 where it was done."""
        results: list[int] = []
        for start in range(0, len(messages), BATCH):
            results += self._batch(messages[start : start + BATCH])
        return results

    def dump(self, message: Message) -> Iterator[tuple[int, bytes]]:
        """Every answer to a request for a list, as (type, what follows nlmsghdr). Raises OSError."""
        self._sequence += 1
        self._socket.send(_packed(message, NLM_F_DUMP, self._sequence))
        while True:
            for kind, sequence, body in _messages(self._socket.recv(RECEIVE)):
                if sequence != self._sequence:
                    continue
                if kind == NLMSG_ERROR:
                    number = -struct.unpack_from("i", body)[0]
                    if number == 0:
                        return
                    raise OSError(number, os.strerror(number))
                if kind == NLMSG_DONE:
                    number = -struct.unpack_from("i", body)[0] if len(body) >= 4 else 0
                    if number > 0:
                        raise OSError(number, os.strerror(number))
                    return
                yield kind, body

    def ask(self, message: Message) -> bytes:
        """The one answer to a request: what follows nlmsghdr. Raises OSError."""
        self._sequence += 1
        self._socket.send(_packed(message, 0, self._sequence))
        for kind, sequence, body in _messages(self._socket.recv(RECEIVE)):
            if sequence == self._sequence:
                if kind == NLMSG_ERROR:
                    number = -struct.unpack_from("i", body)[0]
                    raise OSError(number, os.strerror(number))
                return body
        raise OSError(errno.EPROTO, "netlink did not answer")

    def _batch(self, messages: Sequence[Message]) -> list[int]:
        first = self._sequence + 1
        self._sequence += len(messages)
        results = [-1] * len(messages)
        data = b"".join(_packed(m, NLM_F_ACK, first + number) for number, m in enumerate(messages))
        self._socket.send(data)
        left = len(messages)
        while left:
            for kind, sequence, body in _messages(self._socket.recv(RECEIVE)):
                number = sequence - first
                if kind == NLMSG_ERROR and 0 <= number < len(results) and results[number] < 0:
                    results[number] = -struct.unpack_from("i", body)[0]
                    left -= 1
        return results


async def listen(
    protocol: int,
    groups: int,
    heard: Callable[[bytes], None],
    missed: Callable[[], None],
    *,
    prepare: Callable[[socket.socket], None] = lambda events: None,
) -> None:
    """Run for ever with the notices of the multicast groups (a bit mask), one message, header included, at a time.

    `missed` where the kernel had more than it could keep; `prepare` sets the socket up before it hears anything.
    """
    loop = asyncio.get_running_loop()
    broken: asyncio.Future[None] = loop.create_future()
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    with socket.socket(socket.AF_NETLINK, kind, protocol) as events:
        prepare(events)
        events.bind((0, groups))

        def read() -> None:
            try:
                while True:
                    data, offset = events.recv(65536), 0
                    while offset + 16 <= len(data):
                        (length,) = struct.unpack_from("I", data, offset)
                        heard(data[offset : offset + length])
                        offset += max(16, (length + 3) & ~3)
            except BlockingIOError:
                pass
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    missed()
                elif not broken.done():
                    broken.set_exception(error)

        loop.add_reader(events, read)
        try:
            await broken
        finally:
            loop.remove_reader(events)


def _packed(message: Message, flags: int, sequence: int) -> bytes:
    size = 16 + len(message.body)
    header = struct.pack("IHHII", size, message.kind, NLM_F_REQUEST | flags | message.flags, sequence, 0)
    return header + message.body + bytes(-size % 4)


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(type, sequence number, what follows the header) of each message in a datagram."""
    offset = 0
    while offset + 16 <= len(data):
        length, kind, _, sequence = struct.unpack_from("IHHI", data, offset)
        yield kind, sequence, data[offset + 16 : offset + length]
        offset += max(16, (length + 3) & ~3)


def attribute(kind: int, data: bytes) -> bytes:
    """One attribute, padded."""
    return struct.pack("HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(parts))


def text(kind: int, value: str) -> bytes:
    """An attribute that is a string."""
    return attribute(kind, value.encode() + b"\0")


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """Attributes by type, flags left out; of two of a type the last."""
    return dict(each_attribute(data, offset))


def each_attribute(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("HH", data, offset)
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += max(4, (length + 3) & ~3)


def packed_address(ip: str) -> bytes:
    """4 or 16 bytes."""
    return socket.inet_pton(socket.AF_INET6 if ":" in ip else socket.AF_INET, ip)


def address_text(data: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(data) == 4 else socket.AF_INET6, data)
