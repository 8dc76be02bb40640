"""The kernel's IPVS table: virtual servers, real servers, and what it keeps of each, by generic netlink.

Numbers are those of uapi linux/ip_vs.h. Changes go as packed messages (netlink.py says why); the table is read from
/proc/net/ip_vs, which is one read for all of it.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from kone.net.netlink import (
    NETLINK_GENERIC,
    Message,
    Netlink,
    address_text,
    attribute,
    attributes,
    nested,
    packed_address,
    text,
)

GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME = 16, 3, 1, 2
NEW_SERVICE, SET_SERVICE, DEL_SERVICE, GET_SERVICE, NEW_DEST, SET_DEST, DEL_DEST, GET_DEST = 1, 2, 3, 4, 5, 6, 7, 8
CMD_SERVICE, CMD_DEST = 1, 2
S_AF, S_PROTOCOL, S_ADDR, S_PORT, S_SCHED, S_FLAGS, S_TIMEOUT, S_NETMASK = 1, 2, 3, 4, 6, 7, 8, 9
D_ADDR, D_PORT, D_FORWARD, D_WEIGHT, D_UPPER, D_LOWER, D_ACTIVE, D_INACTIVE, D_FAMILY = 1, 2, 3, 4, 5, 6, 7, 8, 11
PERSISTENT = 0x1
MASQUERADE = 0  # IP_VS_CONN_F_MASQ
PROTOCOLS = {"TCP": socket.IPPROTO_TCP, "UDP": socket.IPPROTO_UDP, "SCTP": socket.IPPROTO_SCTP}
SCHEDULERS = ("rr", "wrr", "lc", "wlc", "sh", "dh", "sed", "nq")


class Server(NamedTuple):
    """A virtual server: where clients connect to. `protocol` is IP's number."""

    protocol: int
    ip: str
    port: int

    def __str__(self) -> str:
        names = {number: name for name, number in PROTOCOLS.items()}
        return f"{names.get(self.protocol, self.protocol)} {self.ip}:{self.port}"


class Real(NamedTuple):
    """A real server: where connections go."""

    ip: str
    port: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A virtual server's row: how it chooses, how long a client sticks (0 not at all), and weights by real server."""

    scheduler: str = "rr"
    affinity_s: int = 0
    weights: Mapping[Real, int] = field(default_factory=dict)


Table = dict[Server, Entry]


class IpvsTable:
    """The table of one network namespace. Raises OSError where the kernel has no IPVS."""

    def __init__(self) -> None:
        self._netlink = Netlink(NETLINK_GENERIC)
        try:
            self._kind = self._family_id()
        except OSError:
            self._netlink.close()
            raise

    def close(self) -> None:
        self._netlink.close()

    def change(self, steps: Iterable[tuple[Server, Entry | None, Entry | None]]) -> dict[Server, int]:
        """Bring servers from one entry to another (None: none); the errno of each that the kernel refused in part.

        What is there already, or gone already, is no error.
        """
        messages: list[Message] = []
        owners: list[tuple[Server, int]] = []  # and the errno that is none, for each message
        for server, before, after in steps:
            for message, pardoned in self._steps(server, before, after):
                messages.append(message)
                owners.append((server, pardoned))
        refused: dict[Server, int] = {}
        for (server, pardoned), number in zip(owners, self._netlink.request(messages), strict=True):
            if number not in (0, pardoned):
                refused.setdefault(server, number)
        return refused

    def connections(self, server: Server) -> dict[Real, int]:
        """How many connections each real server has, active or lingering; {} where the server is not there."""
        found: dict[Real, int] = {}
        request = Message(self._kind, 0, _header(GET_DEST) + nested(CMD_SERVICE, _identity(server)))
        try:
            for _, body in self._netlink.dump(request):
                parts = attributes(attributes(body, 4)[CMD_DEST])
                size = 16 if ":" in server.ip else 4
                real = Real(address_text(parts[D_ADDR][:size]), struct.unpack(">H", parts[D_PORT])[0])
                found[real] = sum(struct.unpack("I", parts[kind])[0] for kind in (D_ACTIVE, D_INACTIVE))
        except OSError as error:
            if error.errno != errno.ESRCH:
                raise
        return found

    def read(self, family: int) -> tuple[Table, bytes]:
        """The table's rows of one family, and the text of the whole table."""
        raw = self.text()
        return read_table(family, raw, self._affinities() if b" persistent " in raw else {}), raw

    @staticmethod
    def text() -> bytes:
        """/proc/net/ip_vs of the calling thread's namespace. Raises OSError."""
        return Path("/proc/thread-self/net/ip_vs").read_bytes()

    def _affinities(self) -> dict[Server, int]:
        found: dict[Server, int] = {}
        for _, body in self._netlink.dump(Message(self._kind, 0, _header(GET_SERVICE))):
            parts = attributes(attributes(body, 4)[CMD_SERVICE])
            if S_PROTOCOL in parts and struct.unpack_from("I", parts[S_FLAGS])[0] & PERSISTENT:
                size = 16 if struct.unpack("H", parts[S_AF])[0] == socket.AF_INET6 else 4
                ip, port = address_text(parts[S_ADDR][:size]), struct.unpack(">H", parts[S_PORT])[0]
                server = Server(struct.unpack("H", parts[S_PROTOCOL])[0], ip, port)
                found[server] = struct.unpack("I", parts[S_TIMEOUT])[0]
        return found

    def _steps(self, server: Server, before: Entry | None, after: Entry | None) -> Iterable[tuple[Message, int]]:
        identity = _identity(server)
        if after is None:
            yield self._message(DEL_SERVICE, identity), errno.ESRCH
            return
        if before is None:
            yield self._message(NEW_SERVICE, identity + _manner(server, after)), 0
        elif (before.scheduler, before.affinity_s) != (after.scheduler, after.affinity_s):
            yield self._message(SET_SERVICE, identity + _manner(server, after)), 0
        weights = before.weights if before else {}
        for real, weight in after.weights.items():
            if weights.get(real) != weight:
                command = SET_DEST if real in weights else NEW_DEST
                yield self._message(command, identity, _real(server, real, weight)), errno.EEXIST
        for real in weights:
            if real not in after.weights:
                yield self._message(DEL_DEST, identity, _real(server, real, 0)), errno.ENOENT

    def _message(self, command: int, service: bytes, dest: bytes = b"") -> Message:
        body = _header(command) + nested(CMD_SERVICE, service)
        return Message(self._kind, 0, body + nested(CMD_DEST, dest) if dest else body)

    def _family_id(self) -> int:
        body = _header(CTRL_CMD_GETFAMILY) + text(CTRL_ATTR_FAMILY_NAME, "IPVS")
        answer = self._netlink.ask(Message(GENL_ID_CTRL, 0, body))
        return int(struct.unpack("H", attributes(answer, 4)[CTRL_ATTR_FAMILY_ID])[0])


def read_table(family: int, raw: bytes, affinities: Mapping[Server, int]) -> Table:
    """The table's rows of one family, from the text of /proc/net/ip_vs; firewall-mark servers are left out.

    `affinities` are the persistent servers' timeouts in seconds, which the text has in the kernel's own unit.
    """
    table: Table = {}
    weights: dict[Real, int] = {}
    wanted = False
    for line in raw.decode().splitlines()[3:]:
        words = line.split()
        if words[0] == "->":
            if wanted:
                ip, port = _address(words[1])
                weights[Real(ip, port)] = int(words[3])
        elif words[0] in PROTOCOLS:
            ip, port = _address(words[1])
            wanted = (":" in ip) == (family == 6)
            weights = {}
            if wanted:
                server = Server(PROTOCOLS[words[0]], ip, port)
                table[server] = Entry(words[2], affinities.get(server, 0), weights)
        else:
            wanted = False
    return table


def shape(raw: bytes) -> bytes:
    """The table's text without the connections' numbers: the same as long as nobody changes the table."""
    return re.sub(rb"(Masq +\d+) .*", rb"\1", raw)


def why_not() -> str:
    """What keeps this host from IPVS, "" where nothing does."""
    try:
        IpvsTable().close()
    except OSError as error:
        if error.errno == errno.ENOENT:
            return "this kernel has no ip_vs (modprobe ip_vs, or a kernel that has it)"
        return f"ip_vs: {os.strerror(error.errno or 0)}"
    return ""


def _header(command: int) -> bytes:
    return struct.pack("BBH", command, 1, 0)


def _identity(server: Server) -> bytes:
    address = packed_address(server.ip)
    return (
        attribute(S_AF, struct.pack("H", socket.AF_INET if len(address) == 4 else socket.AF_INET6))
        + attribute(S_PROTOCOL, struct.pack("H", server.protocol))
        + attribute(S_ADDR, address.ljust(16, b"\0"))
        + attribute(S_PORT, struct.pack(">H", server.port))
    )


def _manner(server: Server, entry: Entry) -> bytes:
    flags = PERSISTENT if entry.affinity_s else 0
    mask = b"\xff\xff\xff\xff" if ":" not in server.ip else struct.pack("I", 128)
    return (
        text(S_SCHED, entry.scheduler)
        + attribute(S_FLAGS, struct.pack("II", flags, 0xFFFFFFFF))
        + attribute(S_TIMEOUT, struct.pack("I", entry.affinity_s))
        + attribute(S_NETMASK, mask)
    )


def _real(server: Server, real: Real, weight: int) -> bytes:
    address = packed_address(real.ip)
    return (
        attribute(D_FAMILY, struct.pack("H", socket.AF_INET if len(address) == 4 else socket.AF_INET6))
        + attribute(D_ADDR, address.ljust(16, b"\0"))
        + attribute(D_PORT, struct.pack(">H", real.port))
        + attribute(D_FORWARD, struct.pack("I", MASQUERADE))
        + attribute(D_WEIGHT, struct.pack("I", weight))
        + attribute(D_UPPER, struct.pack("I", 0))
        + attribute(D_LOWER, struct.pack("I", 0))
    )


def _address(text: str) -> tuple[str, int]:
    """Address and port as /proc/net/ip_vs writes them: 0A60000A:0035, [fd00:…]:0035."""
    ip, _, port = text.rpartition(":")
    if ip.startswith("["):
        return str(address_text(packed_address(ip[1:-1]))), int(port, 16)
    return address_text(bytes.fromhex(ip)), int(port, 16)
