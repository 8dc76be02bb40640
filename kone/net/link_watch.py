"""Noticing by netlink that someone took the bridge, its addresses or its routes away, or that the host moved.

Only what concerns the bridge and is a loss is passed on: pods that come and go wake nobody.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Callable

RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE = (
    0x1,
    0x10,
    0x40,
    0x100,
    0x400,
)
GROUPS = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE
RTM_NEWLINK, RTM_DELLINK, RTM_NEWADDR, RTM_DELADDR, RTM_NEWROUTE, RTM_DELROUTE = 16, 17, 20, 21, 24, 25
RTA_OIF = 4
IFF_UP = 1


def is_loss(message: bytes, index: int) -> bool:
    """Whether a message of rtnetlink says that link `index` is gone, down, or lost an address or a route."""
    _, kind = struct.unpack_from("IH", message)
    if kind in (RTM_NEWLINK, RTM_DELLINK):
        link, flags = struct.unpack_from("iI", message, 20)
        return link == index and (kind == RTM_DELLINK or not flags & IFF_UP)
    if kind == RTM_DELADDR:
        return bool(struct.unpack_from("I", message, 20)[0] == index)
    if kind == RTM_DELROUTE:
        offset = 28
        while offset + 8 <= len(message):
            length, attribute = struct.unpack_from("HH", message, offset)
            if attribute == RTA_OIF:
                return bool(struct.unpack_from("i", message, offset + 4)[0] == index)
            offset += max(4, (length + 3) & ~3)
    return False


def is_of_uplink(message: bytes, index: int) -> bool:
    """Whether a message of rtnetlink tells of link `index`, or of a default route that came or went."""
    _, kind = struct.unpack_from("IH", message)
    if kind == RTM_NEWLINK:
        return bool(struct.unpack_from("i", message, 20)[0] == index)
    return kind in (RTM_NEWROUTE, RTM_DELROUTE) and message[17] == 0  # rtm_dst_len


async def watch_link(
    index: Callable[[], int], lost: Callable[[], None], uplink: Callable[[], int], moved: Callable[[], None]
) -> None:
    """Run for ever, calling `lost` when the link with that index lost something, and `moved` when the host's uplink
    may be another, or have another MTU.
    """

    def heard(message: bytes) -> None:
        if is_loss(message, index()):
            lost()
        if is_of_uplink(message, uplink()):
            moved()

    def missed() -> None:
        lost()
        moved()

    await _listen(heard, missed)


async def watch_addresses(changed: Callable[[], None]) -> None:
    """Run for ever, calling `changed` when the host has an address more or less, or another default route."""

    def heard(message: bytes) -> None:
        _, kind = struct.unpack_from("IH", message)
        if kind in (RTM_NEWADDR, RTM_DELADDR) or (kind in (RTM_NEWROUTE, RTM_DELROUTE) and message[17] == 0):
            changed()

    await _listen(heard, changed)


async def _listen(heard: Callable[[bytes], None], missed: Callable[[], None]) -> None:
    """Run for ever with rtnetlink's notices, one at a time; `missed` where the kernel had more than it could keep."""
    loop = asyncio.get_running_loop()
    broken: asyncio.Future[None] = loop.create_future()
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    with socket.socket(socket.AF_NETLINK, kind, 0) as events:
        events.bind((0, GROUPS))

        def read() -> None:
            try:
                while True:
                    data = events.recv(65536)
                    offset = 0
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
