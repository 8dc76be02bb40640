"""Addresses of the load balancer's pool on the uplink: held, announced by gratuitous ARP or an unsolicited neighbour
advertisement, and taken back.

Which they are is in a file, written before the kernel has them: an address is removed only where kone gave it, also
after kill -9. When someone else removes one, netlink tells, and it is given and announced again.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import socket
import struct
from collections.abc import Collection, Iterable
from pathlib import Path

from kone.aio.tasks import TaskGroup
from kone.net.dummy_link import DummyLink
from kone.net.link_watch import watch_link

log = logging.getLogger(__name__)

FILE = "load-balancer.json"
ETH_P_ARP, ETH_P_IP = 0x0806, 0x0800
ETH_P_IPV6 = 0x86DD
BROADCAST = b"\xff" * 6
ALL_NODES = b"\x33\x33\x00\x00\x00\x01"
NEIGHBOUR_ADVERTISEMENT, OVERRIDE = 136, 0x20000000
ARP_REQUEST = 1
SETTLE_S = 0.2


class UplinkAddresses:
    """The addresses that kone gave the link which has `node_ip`."""

    def __init__(self, data_dir: Path, node_ip: str) -> None:
        self._path = data_dir / FILE
        self._node_ip = node_ip
        self._link = ""
        self._held: frozenset[str] = frozenset()
        self._lost = asyncio.Event()
        self._tasks = TaskGroup("uplink-addresses")

    async def start(self) -> None:
        """Find the uplink, and watch that what is held stays there."""
        self._link = link_of(self._node_ip)
        lost = self._lost.set
        self._tasks.guard(lambda: watch_link(self._index, lost, self._index, lost), name="uplink-watch")
        self._tasks.guard(self._mend, name="uplink-mend")

    async def stop(self) -> None:
        """Let go; the addresses stay."""
        await self._tasks.cancel()

    async def hold(self, addresses: Collection[str]) -> None:
        """Have the uplink hold exactly these, of those that kone ever gave. Raises OSError."""
        wanted = frozenset(addresses)
        given = read_given(self._path)
        if not wanted and not given:
            return
        if wanted and not self._link:
            raise OSError(errno.ENODEV, f"no link has the node's address {self._node_ip}")
        stale = {(link, ip) for link, ip in given if ip not in wanted or link != self._link}
        _write_given(self._path, given | {(self._link, ip) for ip in wanted})
        remove(stale)
        self._held = wanted
        self._give()
        _write_given(self._path, {(self._link, ip) for ip in wanted})

    def _index(self) -> int:
        try:
            return socket.if_nametoindex(self._link)
        except OSError:
            return 0

    def _give(self) -> None:
        """Add what is missing, and tell the neighbours of it."""
        for family in (4, 6):
            held = {ip for ip in self._held if _family(ip) == family}
            if not held:
                continue
            link = DummyLink(self._link, family)
            try:
                missing = sorted(held - link.addresses())
                for ip, number in link.change(missing, ()).items():
                    raise OSError(number, f"giving {ip} to {self._link}: {os.strerror(number)}")
            finally:
                link.close()
            announce(self._link, missing)

    async def _mend(self) -> None:
        while True:
            await self._lost.wait()
            await asyncio.sleep(SETTLE_S)
            self._lost.clear()
            try:
                self._give()
            except OSError as error:
                log.warning("addresses of load balancers cannot be given back to %s: %s", self._link, error)


def remove_given(data_dir: Path) -> list[str]:
    """Take all back that a run on this data directory gave; what there was. Raises OSError."""
    given = read_given(data_dir / FILE)
    remove(given)
    (data_dir / FILE).unlink(missing_ok=True)
    return sorted(ip for _, ip in given)


def remove(given: Iterable[tuple[str, str]]) -> None:
    """Take addresses from links; what is gone is no error."""
    for name, ip in sorted(given):
        link = DummyLink(name, _family(ip))
        try:
            if link.index:
                link.change((), [ip])
        finally:
            link.close()


def read_given(path: Path) -> set[tuple[str, str]]:
    """(link, address) of each that was given."""
    try:
        return {(str(link), str(ip)) for link, ip in json.loads(path.read_text())}
    except FileNotFoundError:
        return set()
    except (OSError, ValueError, TypeError) as error:
        log.warning("%s cannot be read (%s): addresses of an earlier run stay", path, error)
        return set()


def _write_given(path: Path, given: Collection[tuple[str, str]]) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(sorted(given)))
    os.replace(temporary, path)


def link_of(ip: str) -> str:
    """The link that has the address; "" where none has."""
    for _, name in socket.if_nameindex():
        link = DummyLink(name, _family(ip))
        try:
            if ip in link.addresses():
                return name
        finally:
            link.close()
    return ""


def announce(link: str, addresses: Iterable[str]) -> None:
    """Tell the link's neighbours that these are here (gratuitous ARP, RFC 5227 section 3; unsolicited neighbour
    advertisement, RFC 4861 section 7.2.6). What fails is logged."""
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as packets:
            packets.bind((link, 0))
            mac = packets.getsockname()[4]
            if len(mac) != 6:
                return
            for ip in addresses:
                packets.send(gratuitous_arp(mac, ip) if _family(ip) == 4 else advertisement(mac, ip))
    except OSError as error:
        log.warning("addresses cannot be announced on %s: %s", link, error)


def gratuitous_arp(mac: bytes, ip: str) -> bytes:
    """An Ethernet frame to all: who has `ip`, tell `ip` at `mac`."""
    address = socket.inet_aton(ip)
    body = struct.pack(">HHBBH", 1, ETH_P_IP, 6, 4, ARP_REQUEST) + mac + address + bytes(6) + address
    return BROADCAST + mac + struct.pack(">H", ETH_P_ARP) + body


def advertisement(mac: bytes, ip: str) -> bytes:
    """An Ethernet frame to all nodes: `ip` is at `mac`, whatever was known before."""
    address, everybody = socket.inet_pton(socket.AF_INET6, ip), socket.inet_pton(socket.AF_INET6, "ff02::1")
    link_layer_address = struct.pack("BB", 2, 1) + mac
    body = struct.pack(">BBHI", NEIGHBOUR_ADVERTISEMENT, 0, 0, OVERRIDE) + address + link_layer_address
    pseudo = address + everybody + struct.pack(">II", len(body), socket.IPPROTO_ICMPV6)
    body = body[:2] + struct.pack(">H", _checksum(pseudo + body)) + body[4:]
    header = struct.pack(">IHBB", 6 << 28, len(body), socket.IPPROTO_ICMPV6, 255) + address + everybody
    return ALL_NODES + mac + struct.pack(">H", ETH_P_IPV6) + header + body


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of an even number of bytes."""
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _family(ip: str) -> int:
    return 6 if ":" in ip else 4


def is_listened_on(ip: str, port: tuple[str, int]) -> bool:
    """Whether a program of this host has the port of this address; a protocol that cannot be tried is free."""
    protocol, number = port
    kinds = {"TCP": socket.SOCK_STREAM, "UDP": socket.SOCK_DGRAM}
    if protocol not in kinds:
        return False
    try:
        with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, kinds[protocol]) as trial:
            if protocol == "TCP":  # a connection that is through does not count
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((ip, number))
    except OSError as error:
        return error.errno == errno.EADDRINUSE
    return False
