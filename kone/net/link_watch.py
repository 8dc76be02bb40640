"""Noticing by netlink that someone took the bridge, its addresses or its routes away, or that the host moved.

Only what concerns the bridge and is a loss is passed on: pods that come and go wake nobody.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from kone.net.netlink import NETLINK_ROUTE, attributes, listen

RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE = (
    0x1,
    0x10,
    0x40,
    0x100,
    0x400,
)
IPV4_NETCONF, IPV6_NETCONF = 1 << 23, 1 << 24  # RTNLGRP_IPV4_NETCONF, RTNLGRP_IPV6_NETCONF
GROUPS = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE
RTM_NEWLINK, RTM_DELLINK, RTM_NEWADDR, RTM_DELADDR, RTM_NEWROUTE, RTM_DELROUTE = 16, 17, 20, 21, 24, 25
RTM_NEWNETCONF, NETCONFA_IFINDEX, NETCONFA_FORWARDING, ALL_LINKS = 80, 1, 2, -1
RTA_OIF = 4
IFF_UP = 1


def is_loss(message: bytes, index: int) -> bool:
    """Whether a message of rtnetlink says that link `index` is gone, down, or lost an address or a route, or that the
    host forwards no more.
    """
    _, kind = struct.unpack_from("IH", message)
    if kind in (RTM_NEWLINK, RTM_DELLINK):
        link, flags = struct.unpack_from("iI", message, 20)
        return link == index and (kind == RTM_DELLINK or not flags & IFF_UP)
    if kind == RTM_DELADDR:
        return bool(struct.unpack_from("I", message, 20)[0] == index)
    if kind == RTM_NEWNETCONF:
        said = {name: struct.unpack("i", value)[0] for name, value in attributes(message, 20).items()}
        return said.get(NETCONFA_IFINDEX) == ALL_LINKS and said.get(NETCONFA_FORWARDING) == 0
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
    """Run for ever, calling `lost` when the link with that index lost something or the host forwards no more, and
    `moved` when the host's uplink may be another, or have another MTU.
    """

    def heard(message: bytes) -> None:
        if is_loss(message, index()):
            lost()
        if is_of_uplink(message, uplink()):
            moved()

    def missed() -> None:
        lost()
        moved()

    await listen(NETLINK_ROUTE, GROUPS | IPV4_NETCONF | IPV6_NETCONF, heard, missed)


async def watch_addresses(changed: Callable[[], None]) -> None:
    """Run for ever, calling `changed` when the host has an address more or less, or another default route."""

    def heard(message: bytes) -> None:
        _, kind = struct.unpack_from("IH", message)
        if kind in (RTM_NEWADDR, RTM_DELADDR) or (kind in (RTM_NEWROUTE, RTM_DELROUTE) and message[17] == 0):
            changed()

    await listen(NETLINK_ROUTE, GROUPS, heard, changed)
